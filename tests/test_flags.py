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
    handler = absl.logging.get_absl_handler().python_handler
    facts = {"msg": "%s: a part", "args": ("glas",), "levelno": logging.WARNING}
    record = logging.makeLogRecord(facts | {"name": "spectral_jax.data.datasets.builder"})
    assert handler.format(record) == "glas: a part"
    assert handler.filter(record)
    long = logging.makeLogRecord({"msg": "word " * 60})
    assert max(map(len, handler.format(long).splitlines())) <= 100
    for name in ("absl", "jax._src.xla_bridge", "orbax.checkpoint"):  # no concern of users
        other = logging.makeLogRecord(facts | {"name": name})
        assert not handler.filter(other)
        assert handler.filter(logging.makeLogRecord({"name": name, "levelno": logging.ERROR}))


def test_scores_fit_a_terminal(capsys):
    values = {metric: {"mean": 123.4567, "count": 1000} for metric in METRICS}
    print_scores(
        {
            "dataset": "hearts",
            "trained_on": "hearts of another hospital with a name that is as long as this one",
            "cases": [{"case": "a"}, {"case": "b"}],
            "split": "all",
            "checkpoint": {"step": 1},
            "distance_unit": "mm",
            "nsd_tolerance": 2.0,
            "by_class": {"left ventricle": values},
            "summary": values,
        }
    )
    text = capsys.readouterr().out
    assert "hearts, out of distribution: all 2 cases" in text
    assert max(map(len, text.splitlines())) <= 100
    assert all(f" {metric}" in text for metric in METRICS)
    assert text.count("123.4567 (1000)") == 2 * len(METRICS)
