"""A study of two tiny arms, from training to the records of its runs."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY_STUDY = """
from experiments.configs import tiny
from experiments.studies.design import Study, make_arms

def get_study():
    config = tiny.get_config()
    config.data.data_dir = {data_dir!r}
    config.data.image_size = 32
    config.train.epochs = 1.0
    return Study("Tiny", config, make_arms(("none", "twin")), seeds=(7, 8))
"""


def run_study(*flags, home=None):
    environment = os.environ | {"XLA_FLAGS": ""} | ({"XDG_CACHE_HOME": str(home)} if home else {})
    return subprocess.run(
        [sys.executable, "-m", "experiments.study", *flags],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_parts_merge_and_what_is_done_is_done_wherever_the_study_goes_on(
    mni152, data_dir, tmp_path
):
    file = tmp_path / "tiny_study.py"
    file.write_text(TINY_STUDY.format(data_dir=str(data_dir)))
    registration = tmp_path / "tiny_study.registration.json"
    registration.write_text(json.dumps({"primary": []}))

    def study(*flags, workdir, results):
        flags = [f"--study={file}", f"--workdir={workdir}", f"--results={results}", *flags]
        ended = run_study(*flags, home=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    study("--register", workdir=tmp_path / "a", results=tmp_path / "one")
    study("--arms=none", workdir=tmp_path / "a", results=tmp_path / "one")
    study("--arms=twin", "--seeds=8", workdir=tmp_path / "b", results=tmp_path / "two")
    done = sorted(path.name for path in tmp_path.glob("*/records/*"))
    assert done == ["none-seed7.json", "none-seed8.json", "twin-seed8.json"]
    shutil.copytree(tmp_path / "two", tmp_path / "one", dirs_exist_ok=True)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("one/records/*")}
    said = study(workdir=tmp_path / "c", results=tmp_path / "one")
    assert "3 of 4 runs are done" in said
    assert [path.name for path in tmp_path.glob("c/runs/*/seed*.log")] == ["seed7.log"]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())

    twin = json.loads((tmp_path / "one/records/twin-seed7.json").read_text())
    assert twin["config"]["objective"]["spectral"] == "concordance"
    assert twin["config"]["train"]["seed"] == 7
    assert twin["departures"] == []
    assert len(twin["registration"]) == 64
    assert str(tmp_path) not in json.dumps(twin)  # no path of this machine
    rows = twin["data_sets"]["mni152-test"]["rows"]
    assert len({tuple(row[:3]) for row in rows}) == len(rows) > 0


def test_what_is_not_there_is_named(tmp_path):
    ended = run_study("--study=none.py", f"--workdir={tmp_path}")
    assert ended.returncode == 2
    assert "--study=none.py: no such file" in ended.stderr
    study = "--study=experiments/studies/heart.py"
    ended = run_study(study, f"--workdir={tmp_path}", "--arms=nothing")
    assert ended.returncode == 2
    assert "--arms=nothing: this study has none, paper, midband, twin" in ended.stderr
