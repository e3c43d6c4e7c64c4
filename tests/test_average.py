"""Networks that are averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrained import TINY

from spectral_jax.data.sources import DatasetInfo
from spectral_jax.inference.export import export_stablehlo, run_stablehlo
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel, average
from spectral_jax.models import build_model
from spectral_jax.training.config import ConfigError, parse_config

DATA = DatasetInfo("folder", "any", ("background", "a", "b"), ("#000000",) * 3, 1, "identity")


def trained(name, seed, activation="softmax", flip=True, data=DATA, **options):
    """A network with random parameters, as if from a run."""
    values = {"data": {"name": "folder", "image_size": 32}, "augment": {"flip": flip}}
    values["model"] = {"name": name, "activation": activation, "options": options}
    classes = 3 if activation == "softmax" else 2
    model = build_model(name, num_classes=classes, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    draw = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: draw.uniform(0.1, 1, x.shape).astype(x.dtype), shapes)
    variables = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    variables["params"]["head"]["kernel"] -= 0.5
    return TrainedModel(parse_config(values), data, model, variables, seed)


TRANSUNET = {key: value for key, value in TINY.items() if key != "num_classes"} | {"image_size": 32}


def networks(activation):
    return [
        trained("unet", 1, activation, widths=(4, 8)),
        trained("unet", 2, activation, flip=False, widths=(3,), norm="instance"),
        trained("transunet", 3, activation, **TRANSUNET),
    ]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_are_the_mean_of_the_networks(activation):
    members = networks(activation)
    together = average(members, ["a", "b", "c"])
    assert (together.steps, together.members) == ((1, 2, 3), ("a", "b", "c"))
    assert not together.config.augment.flip  # as one of them
    image = np.random.default_rng(0).integers(0, 255, (2, 40, 36, 1), np.uint8)
    alone = [np.stack(list(Predictor(member).slices([image]))) for member in members]
    mean = np.stack(list(Predictor(together).slices([image])))
    np.testing.assert_allclose(mean, np.mean(alone, axis=0), rtol=1e-4, atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 0.05


def test_an_average_is_exported():
    together = average(networks("softmax")[:2], ["a", "b"])
    images = np.random.default_rng(0).random((2, 32, 32, 1), np.float32)
    found = run_stablehlo(export_stablehlo(together, ["cpu"]), images)
    expected = [
        jax.nn.softmax(member.model.apply(member.variables, images, train=False))
        for member in networks("softmax")[:2]
    ]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-4, atol=1e-6)


def test_a_single_run_stays_what_it_is():
    (member,) = networks("softmax")[:1]
    assert average([member], ["a"]) is member


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"classes": ("background", "b", "a")}}, "classes .*'a', 'b'.* and .*'b', 'a'"),
        ({"data": {"intensity": "ct_window"}}, "intensity 'identity' and 'ct_window'"),
        ({"config": {"image_size": 64}}, r"input size \(32, 32\) and \(64, 64\)"),
    ],
)
def test_runs_that_cannot_be_averaged_are_named(change, message):
    first, second = networks("softmax")[:2]
    data = dataclasses.replace(second.data, **change.get("data", {}))
    section = dataclasses.replace(second.config.data, **change.get("config", {}))
    config = dataclasses.replace(second.config, data=section)
    second = dataclasses.replace(second, data=data, config=config)
    with pytest.raises(ConfigError, match=f"runs/a and runs/b cannot be averaged: {message}"):
        average([first, second], ["runs/a", "runs/b"])
