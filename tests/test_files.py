"""Whole files or none, and JSON that names what is wrong with it."""

import json
import math
import os

import numpy as np
import pytest
from etils import epath

from spectral_jax.files import (
    read_json,
    write_arrays,
    write_json,
    write_text,
    written_whole,
)


@pytest.mark.parametrize("before", [None, "old"])
def test_what_fails_half_way_changes_nothing(tmp_path, before):
    target = tmp_path / "new" / "a.png"
    if before:
        write_text(target, before)

    def fail():
        with written_whole(target) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [path.name for path in target.parent.iterdir()] == (["a.png"] if before else [])
    assert before is None or target.read_text() == before


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    """Writing fails in the middle for every kind of file."""
    write_json(tmp_path / "a.json", {"step": 1})
    write_arrays(tmp_path / "a.npz", {"x": np.zeros(3)})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: write_json(tmp_path / "a.json", {"step": 2}),
        lambda: write_arrays(tmp_path / "a.npz", {"x": np.ones(3)}),
        lambda: write_text(tmp_path / "b.html", "<html>"),
    ):
        with pytest.raises(OSError, match="No space"):
            write()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["a.nii.gz", "x" * 250 + ".json", "\N{SKULL}" * 62 + ".gz", "a\nb [1]\\.json", "\udcff"]
)
def test_any_name_that_the_file_system_takes(tmp_path, name):
    endings = []
    with written_whole(tmp_path / name) as temporary:
        endings.append("".join(temporary.suffixes[-2:]))
        temporary.write_text("whole")
    assert (tmp_path / name).read_text() == "whole"
    assert os.listdir(tmp_path) == [name]
    assert name != "a.nii.gz" or endings == [".nii.gz"]


def test_json_has_null_for_what_is_not_a_number(tmp_path):
    values = {"a": math.nan, "b": [1, -math.inf, {"c": (math.nan, True, "x")}], "d": None}
    write_json(tmp_path / "a.json", values)
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    expected = {"a": None, "b": [1, None, {"c": [None, True, "x"]}], "d": None}
    assert json.loads(text) == read_json(tmp_path / "a.json", "") == expected


@pytest.mark.parametrize(
    "content",
    [b"", b'{"step": ', b"[1, 2]", b"null", b"\xff\xfe{}", bytes(100), b"[" * 100_000],
    ids=["empty", "cut", "list", "null", "encoding", "zeros", "deep"],
)
def test_damaged_json_is_one_error_that_names_the_file(tmp_path, content):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json is damaged \(.+\): measure again$"):
        read_json(file, "measure again")


def test_names_that_are_no_utf8_are_written_as_escapes(tmp_path):
    write_text(tmp_path / "page.html", os.fsdecode(b"case \xff"))
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "case \\udcff"


def test_arrays_come_back(tmp_path):
    write_arrays(epath.Path(tmp_path) / "a.npz", {"x": np.arange(3), "y": np.eye(2)})
    with np.load(tmp_path / "a.npz") as arrays:
        np.testing.assert_array_equal(arrays["x"], [0, 1, 2])
        assert sorted(arrays) == ["x", "y"]
