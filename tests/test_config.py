"""The configuration: types, choices, nearest names, and the files that ship."""

import pathlib
import runpy

import pytest

from spectral_jax.training.config import Config, ConfigError, default_config, parse_config

FILES = sorted((pathlib.Path(__file__).parents[1] / "experiments" / "configs").glob("[!_]*.py"))


def test_defaults_are_the_dataclasses():
    assert parse_config(default_config()) == Config()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_shipped_configuration_is_valid(file):
    parse_config(runpy.run_path(str(file))["get_config"]())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optin": {}}, "did you mean config.optim"),
        ({"optim": {"learning_rte": 0.1}}, "did you mean config.optim.learning_rate"),
        ({"optim": {"learning_rate": "high"}}, "expected float"),
        ({"optim": {"learning_rate": -1.0}}, "above 0"),
        ({"optim": {"learning_rate": float("nan")}}, "finite"),
        ({"optim": {"name": "adam"}}, "did you mean 'adamw'"),
        ({"objective": {"spectral": "midbnd"}}, "did you mean 'midband'"),
        ({"objective": {"ramp": 2.0}}, "between 0 and 1"),
        ({"train": {"batch_size": 2.5}}, "expected int"),
        ({"train": {"epochs": 0.0}}, "above 0"),
        ({"data": {"image_size": 4}}, "at least 8"),
        ({"augment": {"scale": 1.5}}, "at most 1"),
        ({"augment": {"flip": 1}}, "expected bool"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(values)
