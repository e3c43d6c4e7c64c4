"""What the commands share."""

import logging

import absl.logging
import pytest

from spectral_jax.commands import flags
from spectral_jax.commands.evaluate import print_scores
from spectral_jax.metrics import METRICS
from spectral_jax.training.config import ConfigError


def test_configurations_are_named_or_given_as_files(tmp_path, monkeypatch):
    assert flags.config_file("quickstart").endswith("configs/quickstart.py")
    mine = tmp_path / "mine.py"
    mine.touch()
    assert flags.config_file(str(mine)) == str(mine)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").touch()
    assert flags.config_file("tiny.py") == "tiny.py"
    with pytest.raises(ConfigError, match="did you mean folder"):
        flags.config_file("folders")


def test_remarks_are_sentences():
    flags.show_remarks_plainly()
    record = logging.makeLogRecord({"msg": "%s: a part", "args": ("glas",), "levelname": "WARNING"})
    assert absl.logging.get_absl_handler().format(record) == "glas: a part"


def test_scores_fit_a_terminal(capsys):
    values = {metric: {"mean": 123.4567, "count": 1000} for metric in METRICS}
    print_scores(
        {
            "dataset": "hearts",
            "split": "test",
            "checkpoint": {"step": 1},
            "distance_unit": "mm",
            "nsd_tolerance": 2.0,
            "by_class": {"left ventricle": values},
            "summary": values,
        }
    )
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    assert all(f" {metric}" in text for metric in METRICS)
    assert text.count("123.4567 (1000)") == 2 * len(METRICS)
