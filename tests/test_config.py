"""The configuration: types, choices, nearest names, and the files that ship."""

import dataclasses
import json
import pathlib
import runpy

import absl.flags
import jax
import numpy as np
import pytest
from ml_collections import config_flags

from spectral_jax.data.labels import Labels
from spectral_jax.losses import PRESETS, harmonized_loss
from spectral_jax.models import MODELS
from spectral_jax.training.build import make_model
from spectral_jax.training.config import Config, ConfigError, default_config, parse_config

FILES = sorted((pathlib.Path(__file__).parents[1] / "spectral_jax" / "configs").glob("[!_]*.py"))


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
        ({"objective": {"spatial": "dicece"}}, "did you mean 'dice_ce'"),
        ({"objective": {"spatial": {}}}, "a loss by name"),
        ({"objective": {"spatial": {"dise": {}}}}, "did you mean .*spatial.dice"),
        ({"objective": {"spatial": {"dice": 1.0}}}, "keywords of the loss"),
        ({"objective": {"spatial": {"dice": {"poling": "batch"}}}}, "did you mean .*dice.pooling"),
        ({"objective": {"spatial": {"dice": {"smooth": "1"}}}}, "expected float"),
        ({"objective": {"spatial": {"dice": {"valid": None}}}}, "unknown key .*dice.valid"),
        ({"objective": {"spatial": {"dice": {"class_weights": "rare"}}}}, "or 'frequency'"),
        ({"objective": {"spatial": {"dice": {"class_weights": (1, -1)}}}}, "numbers from 0 up"),
        ({"model": {"activation": "sigmod"}}, "did you mean 'sigmoid'"),
        ({"train": {"batch_size": 2.5}}, "expected int"),
        ({"train": {"epochs": 0.0}}, "a number above 0 with config.train.steps=0"),
        ({"train": {"steps": 5}}, "epochs=150.0: expected .* or 0 with steps; steps=5"),
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


def test_options_belong_to_their_network():
    """`--config.model.name=transunet` alone changes a configuration of UNet to TransUNet."""
    values = runpy.run_path(str(FILES[0].parent / "folder.py"))["get_config"]()
    assert parse_config(values).model.options == {"widths": (16, 32, 64, 128)}
    values.model.name = "transunet"
    config = parse_config(values)
    assert config.model.options == {}
    model = make_model(config, Labels(1))
    images = jax.ShapeDtypeStruct((1, 128, 128, 3), np.float32)
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (1, 128, 128, 2)
    values.model.transunet.variant = "vit_b16"
    assert make_model(parse_config(values), Labels(1)).variant == "vit_b16"


def test_options_are_kept_resolved():
    """A run's folder, and a study's registration, hold those of the network alone."""
    values = default_config()
    assert set(MODELS) <= set(values.model.keys())
    values.model.unet.widths = (4, 8)
    values.model.transunet.variant = "vit_b16"
    kept = json.loads(json.dumps(dataclasses.asdict(parse_config(values))))["model"]
    assert kept["options"] == {"widths": [4, 8]}
    assert not set(MODELS) & kept.keys()
    assert parse_config({"model": kept}).model.options == {"widths": [4, 8]}
    with pytest.raises(ConfigError, match=r"did you mean config\.model\.transunet"):
        parse_config({"model": {"transnet": {}}})
    with pytest.raises(ConfigError, match=r"config.model.unet=4: expected Mapping"):
        parse_config({"model": {"unet": 4}})


def test_a_command_line_gives_keywords_and_regions(monkeypatch):
    arguments = [
        "train",
        "--config.model.name=transunet",
        "--config.model.transunet.variant=vit_b16",
        "--config.data.options.regions={'whole': (1, 2), 'front': ('Anterior',)}",
        "--config.data.options.ignore_label=255",
        "--config.objective.spatial={'tversky': {'alpha': 0.2, 'beta': 0.8}}",
    ]
    monkeypatch.setattr("sys.argv", arguments)
    flags = absl.flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        str(FILES[0].parent / "folder.py"),
        flag_values=flags,
        lock_config=False,
        accept_new_attributes=True,
    )
    flags(arguments)
    config = parse_config(flags.config)
    assert config.model.options == {"variant": "vit_b16"}
    assert config.data.options["regions"] == {"whole": (1, 2), "front": ("Anterior",)}
    assert config.data.options["ignore_label"] == 255
    assert config.objective.spatial == {"tversky": {"alpha": 0.2, "beta": 0.8}}
