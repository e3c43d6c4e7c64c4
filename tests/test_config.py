"""The configuration: types, choices, nearest names, and the files that ship."""

import dataclasses
import json
import pathlib
import runpy

import jax
import numpy as np
import pytest

from spectral_jax.losses import PRESETS, harmonized_loss
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
        ({"optim": {"learning_rate": -1.0}}, "at least 1e-12"),
        ({"optim": {"learning_rate": float("nan")}}, "finite"),
        ({"optim": {"name": "adam"}}, "did you mean 'adamw'"),
        ({"objective": {"spectral": "midbnd"}}, "did you mean 'midband'"),
        ({"objective": {"ramp": 2.0}}, "at least 0 and at most 1"),
        ({"objective": {"spectral": 3}}, "expected str"),
        ({"objective": {"spectral": {"poling": "batch"}}}, "did you mean .*spectral.pooling"),
        ({"objective": {"spectral": {"pooling": "bach"}}}, "did you mean 'batch'"),
        ({"objective": {"spectral": {"epsilon": 0.0}}}, "above 0"),
        ({"objective": {"spectral": {"band": "rings"}}}, "expected one of soft_band"),
        ({"objective": {"spectral": {"band": {"ring": {}}}}}, "did you mean .*band.rings"),
        ({"objective": {"spectral": {"band": {"rings": {"number": 3}}}}}, "number"),
        ({"objective": {"spectral": {"band": {"soft_band": {"width": -1}}}}}, "positive"),
        ({"train": {"batch_size": 2.5}}, "expected int"),
        ({"train": {"epochs": 0.0}}, "above 0"),
        ({"data": {"image_size": 4}}, "at least 8"),
        ({"augment": {"scale": 1.5}}, "below 1"),
        ({"augment": {"flip": 1}}, "expected bool"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(values)


def test_any_spectral_loss_has_a_name_or_keywords():
    """As in a file, on the command line (`ConfigDict` takes both) and back from a run's JSON."""
    values = default_config()
    values.objective.spectral = "concordance"
    assert parse_config(values).objective.spectral_term == "concordance"
    values.objective.spectral = "none"
    assert parse_config(values).objective.spectral_term is None
    values.objective.spectral = {
        "band": {"soft_band": {"centre_cycles": 13.0, "width": 1.0}},
        "normalisation": "concordance",
        "pooling": "batch",
    }
    config = parse_config(values)
    assert parse_config(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    keywords = config.objective.spectral_term
    logits = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    labels = logits.argmax(-1)
    same = [
        harmonized_loss(logits, labels, spectral=spectral)
        for spectral in (keywords, PRESETS["midband"], "midband")
    ]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])
    assert same[0] != harmonized_loss(logits, labels, spectral={**keywords, "band": None})
