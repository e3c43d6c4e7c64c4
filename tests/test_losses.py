"""Spatial losses and the objective: hand tables, neighbours' conventions, jit, vmap, sharding."""

import importlib
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from spectral_jax import losses
from spectral_jax.losses import (
    SPECTRAL,
    cross_entropy_loss,
    dice_loss,
    harmonized_loss,
    harmonized_terms,
    matthews_loss,
    pearson_loss,
)

pytestmark = pytest.mark.usefixtures("strict_types")

# two samples of three pixels in a row, one class: overlap, sums and sums of squares are plain
P_ROWS = [[1.0, 0.5, 0.0], [0.5, 0.5, 0.0]]
T_ROWS = [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def rows(values):
    return jnp.array(values).reshape(len(values), 1, -1, 1)


def scene(rng, shape=(4, 16, 12), classes=3):
    logits = 2 * rng.standard_normal((*shape, classes)).astype(np.float32)
    labels = (logits + rng.standard_normal(logits.shape)).argmax(-1).astype(np.int32)
    return jnp.asarray(logits), jnp.asarray(labels)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # sample 1: overlap 1, sizes 1.5 + 1; sample 2: overlap 0, sizes 1 + 0
        ({"smooth": 0.0}, np.mean([1 - 2 / 2.5, 1])),
        ({"smooth": 1.0}, np.mean([1 - 3 / 3.5, 1 - 1 / 2])),
        # squares: 1.25 + 1 and 0.5 + 0
        ({"smooth": 0.0, "squared_denominator": True}, np.mean([1 - 2 / 2.25, 1])),
        ({"smooth": 0.0, "pooling": "batch"}, 1 - 2 / 3.5),
        ({"smooth": 0.0, "pooling": "batch", "squared_denominator": True}, 1 - 2 / 2.75),
    ],
)
def test_dice_by_hand(options, expected):
    assert float(dice_loss(rows(P_ROWS), rows(T_ROWS), **options)) == pytest.approx(expected)


def test_dice_equals_optax_where_the_conventions_meet(rng):
    logits, labels = scene(rng)
    targets = jax.nn.one_hot(labels, 3)
    theirs = optax.losses.dice_loss(logits, targets, smooth=1.0, reduction="mean")
    # theirs halves both parts of the fraction, and so counts its smoothing twice
    ours = dice_loss(jax.nn.softmax(logits), targets, smooth=2.0)
    assert float(ours) == pytest.approx(float(theirs.mean()), abs=1e-6)


def test_dice_ce_is_half_of_each_by_transunets_convention(rng):
    logits, labels = scene(rng)
    p = np.exp(np.float64(logits))
    p /= p.sum(-1, keepdims=True)
    dice = []
    for c in range(3):  # as its trainer: sums over the whole batch, squares, smooth 1e-5
        t = np.asarray(labels) == c
        dice.append(
            1 - (2 * (p[..., c] * t).sum() + 1e-5) / ((p[..., c] ** 2).sum() + t.sum() + 1e-5)
        )
    cross_entropy = -np.log(np.take_along_axis(p, np.asarray(labels)[..., None], -1)).mean()
    terms = harmonized_terms(logits, labels, spatial="dice_ce", spectral=None)
    assert float(terms["dice"]) == pytest.approx(np.mean(dice), abs=1e-6)
    assert float(terms["cross_entropy"]) == pytest.approx(cross_entropy, abs=1e-6)
    assert float(terms["loss"]) == pytest.approx((np.mean(dice) + cross_entropy) / 2, abs=1e-6)


def test_matthews_and_pearson_agree_on_hard_masks_with_the_coefficient(rng):
    logits, labels = scene(rng)
    hard = jax.nn.one_hot(jnp.argmax(logits, -1), 3)
    targets = jax.nn.one_hot(labels, 3)
    coefficients = [
        np.corrcoef(np.ravel(hard[b, ..., c]), np.ravel(targets[b, ..., c]))[0, 1]
        for b in range(4)
        for c in (1, 2)
    ]
    for loss in (matthews_loss, pearson_loss):
        assert float(loss(hard, targets)) == pytest.approx(1 - np.mean(coefficients), abs=1e-4)
    # half a mask: Pearson is blind to the gain, Matthews is not
    assert float(pearson_loss(0.5 * targets, targets)) == pytest.approx(0, abs=1e-4)
    assert float(matthews_loss(0.5 * targets, targets)) > 0.2


@pytest.mark.parametrize("spatial", ["dice", "dice_ce", "ce"])
@pytest.mark.parametrize("spectral", [*SPECTRAL, None])
def test_objective_is_the_weighted_sum_of_its_terms(rng, spatial, spectral):
    logits, labels = scene(rng)
    terms = harmonized_terms(logits, labels, spatial=spatial, spectral=spectral, weight=0.3)
    spatial_loss = {
        "dice": lambda: terms["dice"],
        "ce": lambda: terms["cross_entropy"],
        "dice_ce": lambda: (terms["dice"] + terms["cross_entropy"]) / 2,
    }[spatial]()
    assert ("spectral" in terms) == (spectral is not None)
    expected = spatial_loss + 0.3 * terms.get("spectral", 0.0)
    np.testing.assert_allclose(terms["loss"], expected, rtol=1e-6)
    loss = harmonized_loss(logits, labels, spatial=spatial, spectral=spectral, weight=0.3)
    np.testing.assert_array_equal(loss, terms["loss"])


def test_labels_may_be_one_hot_and_options_a_dictionary(rng):
    logits, labels = scene(rng)
    expected = harmonized_loss(logits, labels, spectral="midband")
    one_hot = jax.nn.one_hot(labels, 3)
    np.testing.assert_array_equal(harmonized_loss(logits, one_hot, spectral="midband"), expected)
    keywords = losses.PRESETS["midband"]
    np.testing.assert_array_equal(harmonized_loss(logits, labels, spectral=keywords), expected)


def test_half_precision_logits_are_computed_in_float32(rng):
    logits, labels = scene(rng)
    for dtype in (jnp.bfloat16, jnp.float16):
        half = logits.astype(dtype)
        for spectral in SPECTRAL:
            value, gradient = jax.value_and_grad(harmonized_loss)(half, labels, spectral=spectral)
            assert value.dtype == jnp.float32
            assert gradient.dtype == dtype
            exact = harmonized_loss(half.astype(jnp.float32), labels, spectral=spectral)
            np.testing.assert_array_equal(value, exact)


@pytest.mark.parametrize("spectral", SPECTRAL)
def test_jit_vmap_and_eager_agree_and_the_weight_may_be_traced(rng, spectral):
    logits, labels = scene(rng)
    loss = partial(harmonized_loss, spectral=spectral)
    eager = loss(logits, labels, weight=0.2)
    jitted = jax.jit(lambda w: loss(logits, labels, weight=w))(0.2)
    np.testing.assert_allclose(jitted, eager, rtol=1e-6)
    alone = jax.vmap(lambda x, y: loss(x[None], y[None], weight=0.2))(logits, labels)
    one_by_one = [
        loss(logits[i : i + 1], labels[i : i + 1], weight=0.2) for i in range(len(logits))
    ]
    np.testing.assert_allclose(alone, one_by_one, rtol=1e-5)


@pytest.mark.parametrize("labels", [0, 1], ids=["empty", "full"])
@pytest.mark.parametrize("spectral", SPECTRAL)
def test_empty_and_full_masks_have_finite_values_and_gradients(spectral, labels):
    labels = jnp.full((2, 8, 8), labels)
    for logits in (jnp.zeros((2, 8, 8, 2)), 200 * jax.nn.one_hot(labels, 2)):
        for spatial in ("dice", "dice_ce"):
            value, gradient = jax.value_and_grad(harmonized_loss)(
                logits, labels, spatial=spatial, spectral=spectral
            )
            assert np.isfinite(value)
            assert np.isfinite(gradient).all()


@pytest.mark.parametrize("spatial", ["dice", "dice_ce"])
@pytest.mark.parametrize("spectral", [*SPECTRAL, "midband by products"])
def test_sharded_over_the_batch_equals_one_device_and_gathers_nothing(
    monkeypatch, rng, spectral, spatial
):
    if spectral == "midband by products":  # as on a TPU
        spectral = "midband"
        module = importlib.import_module("spectral_jax.losses.spectral")
        monkeypatch.setattr(
            module, "half_spectrum", lambda x, d: module.half_spectrum_by_products(x, dimensions=d)
        )
    logits, labels = scene(rng, shape=(8, 16, 12))
    labels = labels.at[2:4].set(0)  # two devices see empty masks
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    loss = partial(harmonized_loss, spatial=spatial, spectral=spectral, weight=0.5)
    sharded = jax.shard_map(
        partial(loss, axis_name="data"), mesh=mesh, in_specs=P("data"), out_specs=P()
    )
    step = jax.jit(jax.value_and_grad(sharded))
    placed = jax.device_put((logits, labels), NamedSharding(mesh, P("data")))
    value, gradient = step(*placed)
    exact_value, exact_gradient = jax.jit(jax.value_and_grad(loss))(logits, labels)
    np.testing.assert_allclose(value, exact_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, exact_gradient, atol=1e-7)
    compiled = step.lower(*placed).compile().as_text()
    assert "all-reduce" in compiled
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in compiled


def test_wrong_input_is_named(rng):
    logits, labels = scene(rng)
    with pytest.raises(ValueError, match="spatial='jaccard'"):
        harmonized_loss(logits, labels, spatial="jaccard")
    with pytest.raises(ValueError, match="spectral='phase'"):
        harmonized_loss(logits, labels, spectral="phase")
    with pytest.raises(ValueError, match="one-hot"):
        cross_entropy_loss(logits, logits[..., :2])
    with pytest.raises(ValueError, match="nothing is left"):
        pearson_loss(logits[..., :1], logits[..., :1])


def test_importing_the_losses_is_light():
    program = """
import time, sys, jax, optax
start = time.perf_counter()
import spectral_jax.losses
seconds = time.perf_counter() - start
heavy = {"flax", "grain", "tensorflow_datasets", "orbax", "matplotlib", "tensorflow", "torch"}
print(sorted(heavy & set(sys.modules)), seconds)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("[]"), result.stdout
