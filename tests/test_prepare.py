"""The command that prepares data sets."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import app
from PIL import Image
from raw_data import link

from spectral_jax.commands import prepare as command
from spectral_jax.data.datasets import DATASETS
from spectral_jax.data.sources import Split

REPOSITORY = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "experiments.prepare", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_list_is_a_table_of_a_hundred_columns(capsys):
    command.print_list()
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert {line.split(" ")[0] for line in lines} >= DATASETS.keys()


def test_a_set_tells_how_to_get_it(capsys):
    for dataset in DATASETS.values():
        command.print_dataset(dataset)
        text = capsys.readouterr().out
        assert max(map(len, text.splitlines())) <= 100
        assert dataset.licence in " ".join(text.split())
        assert all(partner.name in text for partner in dataset.partners)


def test_options_are_names_and_values():
    assert command.parse_options(["part=A", "case_pattern=a=b"]) == {
        "part": "A",
        "case_pattern": "a=b",
    }
    for texts, message in ((["organs"], "expected --option=key=value"), (["a=1", "a=2"], "twice")):
        with pytest.raises(app.UsageError, match=message):
            command.parse_options(texts)


def test_prepare_twice(shared_data, tmp_path):
    root = link(shared_data / "GlaS", tmp_path / "GlaS")
    arguments = (
        "--dataset=glas",
        f"--raw_dir={root}",
        f"--data_dir={tmp_path / 'prepared'}",
        "--option=part=A",
        "--option=validation=0",
    )
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    assert "written in" in first.stdout
    assert "note: a part of the official set: 5 of 145 cases" in first.stdout
    assert first.stderr == ""
    (folder,) = (tmp_path / "prepared").glob("glas/*/*")
    assert list(Split(folder, "test").cases) == ["testA_10", "testA_11"]
    assert len(Split(folder, "train").cases) == 3
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["options"] == {"part": "A", "validation": 0, "resplit": False}
    with Image.open(folder / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    check = subprocess.run(
        ["sha256sum", "--check", "--strict", str(folder / "SHA256SUMS")],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr
    assert check.stdout.count("OK") == summary["files"]["count"] == 10

    second = run(*arguments)
    assert "already there" in second.stdout
    assert second.stdout.splitlines()[1:] == first.stdout.splitlines()[1:]


def test_a_wrong_name_is_explained_in_a_line():
    result = run("--dataset=acdx", "--raw_dir=nowhere")
    assert result.returncode == 2
    assert result.stderr.startswith("DataError: --dataset=acdx: did you mean acdc?")
