"""A study of two tiny arms, from training to its page."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY_STUDY = """
from experiments.configs import tiny
from experiments.studies.design import Study, make_arms

def get_study(small):
    config = tiny.get_config()
    config.data.data_dir = {data_dir!r}
    config.data.image_size = 32
    config.train.epochs = 1.0
    arms = make_arms(("none", "midband"), seeds=2)
    return Study("Tiny", config, arms)
"""


@pytest.fixture
def run_study(mni152, data_dir, tmp_path):
    """Runs the command on a study file."""
    file = tmp_path / "tiny_study.py"
    file.write_text(TINY_STUDY.format(data_dir=str(data_dir)))
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": ""}
    flags = [f"--study={file}", f"--workdir={tmp_path / 'study'}"]

    def run():
        command = [sys.executable, "-m", "experiments.study", *flags]
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )

    return run


@pytest.mark.slow
def test_every_arm_is_trained_on_every_seed_and_what_is_done_is_skipped(run_study, tmp_path):
    ended = run_study()
    assert ended.returncode == 0, ended.stderr
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    assert study["arms"]["midband"]["spectral"] == "midband"
    assert study["baselines"] == {"none": "none", "midband": "none"}
    results = sorted((tmp_path / "study" / "runs").glob("*/*/*/*.json"))
    assert len([file for file in results if file.parent.name == "evaluation"]) == 4
    configs = [
        json.loads(file.read_text()) for file in results[0].parents[3].glob("*/*/config.json")
    ]
    assert {(c["objective"]["spectral"], c["train"]["seed"]) for c in configs} == {
        (spectral, seed) for spectral in ("none", "midband") for seed in (0, 1)
    }
    before = {file: file.stat().st_mtime_ns for file in results}
    results[0].unlink()
    assert run_study().returncode == 0
    after = {file: file.stat().st_mtime_ns for file in results}
    assert [file for file in results if after[file] != before[file]] == results[:1]


def test_a_study_that_is_not_there_is_named(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.study",
        "--study=none.py",
        f"--workdir={tmp_path}",
    ]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "--study=none.py: no such file" in ended.stderr
