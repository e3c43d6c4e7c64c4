"""Every setting reaches what it is for: the program that is compiled, and what that computes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks

from spectral_jax.configs import tiny
from spectral_jax.data.augment import augment
from spectral_jax.data.labels import Labels
from spectral_jax.losses import dice_loss, harmonized_loss
from spectral_jax.models import build_model
from spectral_jax.training import sharding
from spectral_jax.training.build import build, make_model
from spectral_jax.training.config import AugmentConfig, parse_config
from spectral_jax.training.objective import make_objective
from spectral_jax.training.step import make_train_step

STILL = {
    field.name: False if field.type in (bool, "bool") else 0.0
    for field in dataclasses.fields(AugmentConfig)
}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (8, 16, 16)).astype(np.uint8)
    images = (labels[..., None] * 80 + rng.integers(0, 40, (8, 16, 16, 1))).astype(np.uint8)
    return {"image": images, "label": labels}


def make_step(**augment):
    """The step of a small network that learns nothing, and what it was built of."""
    values = tiny.get_config()
    values.data.image_size = 16
    values.optim.name = "sgd"
    values.optim.learning_rate = 1e-12
    values.objective.spectral = "none"
    values.augment.update(STILL | augment)
    config = parse_config(values)
    labels, mesh = Labels(2), sharding.make_mesh(config.mesh)
    built = build(config, labels, 1, mesh, total_steps=10)
    objective = make_objective(config, labels)
    step = make_train_step(built.model, config, 10, built.layout, objective)
    return step, built


def losses(batch, count, **augment):
    step, built = make_step(**augment)
    state = built.first_state(jax.random.key(0))
    found = []
    for _ in range(count):
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    return found


def test_augmentation_is_drawn_anew_in_each_step(batch):
    still = losses(batch, 3)
    np.testing.assert_allclose(still, still[0], rtol=1e-6)
    moving = losses(batch, 3, flip=True, brightness=0.5)
    assert len({round(loss, 5) for loss in moving}) == 3


@functools.cache
def program(**changes):
    """The text of a step in which some of the examples turn a little, and of what is changed."""
    step, built = make_step(**{"affine_probability": 0.75, "rotation_degrees": 10.0} | changes)
    batch = {
        "image": jax.ShapeDtypeStruct((8, 16, 16, 1), jnp.uint8),
        "label": jax.ShapeDtypeStruct((8, 16, 16), jnp.uint8),
    }
    return step.lower(built.shapes, batch).as_text()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flip", True),
        ("quarter_turns", True),
        ("rotation_degrees", 30.0),
        ("scale", 0.4),
        ("shift", 0.4),
        ("affine_probability", 0.25),
        ("contrast", 0.4),
        ("brightness", 0.4),
        ("gamma", 0.4),
        ("noise", 0.4),
    ],
)
def test_every_key_of_augmentation_is_in_the_program(key, value):
    assert program(**{key: value}) != program()


def test_pictures_grow_and_shrink():
    """Areas of a centred square after scaling alone: below and above its own, within the range."""
    label = jnp.zeros((64, 48, 48), jnp.uint8).at[:, 14:34, 14:34].set(1)
    image = label[..., None].astype(jnp.float32)
    _, labels = augment(
        jax.random.key(0), image, label, **STILL | {"scale": 0.3, "affine_probability": 1.0}
    )
    sides = np.sqrt(np.asarray(labels, float).sum((1, 2))) / 20
    assert 1 / 1.35 < sides.min() < 0.9
    assert 1.2 < sides.max() < 1 / 0.65
    assert 0.3 < (sides > 1).mean() < 0.7


@pytest.fixture(scope="module")
def masks():
    """Logits and labels of two pictures and three classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2, 8, 8))
    logits = rng.normal(size=(2, 8, 8, 3)) + np.eye(3)[labels]
    return logits.astype(np.float32), labels.astype(np.uint8)


def one_picture_and_class(logits, labels):
    """Probabilities and truth of each picture and class: `[picture, class, pixels]`."""
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pair = (probabilities, np.eye(3)[labels])
    return (x.reshape(len(x), -1, 3).swapaxes(1, 2) for x in pair)


@pytest.mark.parametrize(("include", "first"), [(False, 1), (True, 0)])
def test_dice_counts_the_background_where_it_is_wanted(masks, include, first):
    p, g = (x[:, first:] for x in one_picture_and_class(*masks))
    expected = np.mean(1 - 2 * (p * g).sum(-1) / (p.sum(-1) + g.sum(-1)))
    probabilities, targets = jax.nn.softmax(masks[0]), jax.nn.one_hot(masks[1], 3)
    found = dice_loss(probabilities, targets, include_background=include)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("include", "first"), [(False, 1), (True, 0)])
def test_the_spectral_term_counts_the_background_where_it_is_wanted(masks, include, first):
    """In the library and in a run; Pearson's correlation is easy by hand."""
    p, g = one_picture_and_class(*masks)
    each = [[np.corrcoef(p[i, c], g[i, c])[0, 1] for c in range(first, 3)] for i in range(2)]
    expected = 1 - np.mean(each)
    options = {"spatial": {}, "spectral": "pearson", "include_background": include}
    found = harmonized_loss(*masks, **options, weight=1.0)
    assert float(found) == pytest.approx(expected, rel=1e-4)

    values = tiny.get_config()
    values.objective.update({"spectral": "pearson", "include_background": include})
    config = parse_config(values)
    objective = make_objective(config, Labels(2))
    mesh = sharding.make_mesh(config.mesh)
    split, whole = jax.sharding.PartitionSpec(sharding.AXES), jax.sharding.PartitionSpec()
    of_run = jax.jit(
        jax.shard_map(
            lambda logits, labels: objective(logits, labels, jnp.float32(1))["spectral"],
            mesh=mesh,
            in_specs=(split, split),
            out_specs=whole,
        )
    )
    repeated = (np.repeat(x, mesh.size, axis=0) for x in masks)  # evenly over the devices
    assert float(of_run(*repeated)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [("unet", {"widths": (4, 8)}, 16), ("transunet", tiny_networks.TRANSUNET, 32)],
)
def test_batch_statistics_keep_nine_tenths(name, options, size):
    """What is left of two starts after one step differs by the momentum times their difference."""
    model = build_model(name, num_classes=2, **options)
    images = jax.random.normal(jax.random.key(0), (2, size, size, 1))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(1))

    @jax.jit
    def after_one_step(statistics):
        variables_then = {"params": variables["params"], "batch_stats": statistics}
        rngs = {"dropout": jax.random.key(2)}
        _, updates = model.apply(
            variables_then, images, train=True, mutable=["batch_stats"], rngs=rngs
        )
        return updates["batch_stats"]

    start = variables["batch_stats"]
    moved = jax.tree.map(lambda x: x + 1, start)
    kept = jax.tree.map(lambda a, b: a - b, after_one_step(moved), after_one_step(start))
    for leaf in jax.tree.leaves(kept):
        np.testing.assert_allclose(leaf, 0.9, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "transunet"])
def test_networks_compute_in_bfloat16_where_it_is_asked_for(name):
    values = {"data": {"image_size": 32}, "model": {"name": name, "bfloat16": True}}
    config = parse_config(values)
    assert make_model(config, Labels(2)).dtype == jnp.bfloat16
    values["model"]["bfloat16"] = False
    assert make_model(parse_config(values), Labels(2)).dtype == jnp.float32
