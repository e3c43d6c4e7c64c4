"""A study of two tiny arms, from training to the records of its runs."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from spectral_jax.commands.study import choose
from spectral_jax.training.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY_STUDY = """
from spectral_jax.configs import tiny
from spectral_jax.studies.design import Study, make_arms

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
    study("--arms=none", "--seeds=7", workdir=tmp_path / "a", results=tmp_path / "one")
    assert [path.name for path in tmp_path.glob("one/records/*")] == ["none-seed7.json"]
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    done = tmp_path / "two/records/none-seed7.json"
    before = done.read_bytes(), done.stat().st_mtime_ns
    said = study("--seeds=7", workdir=tmp_path / "b", results=tmp_path / "two")
    assert "1 of 2 runs are done" in said
    assert not (tmp_path / "b/runs/none").exists()
    assert (done.read_bytes(), done.stat().st_mtime_ns) == before
    assert f"report: {tmp_path / 'two' / 'report.html'}" in said
    results = json.loads((tmp_path / "two/results.json").read_text())
    assert results["missing"] == ["none, seed 8", "twin, seed 8"]
    assert results["registration"]["why"] == [
        "no commit holds this registration, so that nothing shows how old it is"
    ]

    twin = json.loads((tmp_path / "two/records/twin-seed7.json").read_text())
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
    with pytest.raises(ConfigError, match=r"--arms=nothing: this study has none, twin"):
        choose("arms", ["nothing"], ["none", "twin"])
    assert choose("seeds", ["9", "7"], ["7", "8", "9"]) == ["7", "9"]
