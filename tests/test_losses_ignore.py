"""Pixels that do not count, overlapping classes, and what weighs classes and terms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from spectral_jax.losses import (
    LOSSES,
    PRESETS,
    SPATIAL,
    SPECTRAL,
    activate,
    cross_entropy_loss,
    dice_loss,
    harmonized_loss,
    harmonized_terms,
    pearson_loss,
    spectral_correlation,
    spectral_correlation_loss,
    tversky_loss,
)

pytestmark = pytest.mark.usefixtures("strict_types")

IGNORE = 255


def scene(rng, shape=(4, 12, 12), classes=3):
    logits = 2 * rng.standard_normal((*shape, classes)).astype(np.float32)
    labels = (logits + rng.standard_normal(logits.shape)).argmax(-1).astype(np.uint8)
    return jnp.asarray(logits), jnp.asarray(labels)


@pytest.fixture
def ignored(rng):
    """Logits, labels with holes, and where they count: all, some, few and none of a sample."""
    logits, labels = scene(rng)
    hole = np.zeros(labels.shape, bool)
    hole[1, 3:7] = True
    hole[2] = rng.random(hole.shape[1:]) < 0.8
    hole[3] = True
    return logits, labels.at[hole].set(IGNORE), ~jnp.asarray(hole)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    ("spatial", "spectral"),
    [*((name, None) for name in SPATIAL), *(("dice_ce", name) for name in SPECTRAL)],
)
def test_ignored_pixels_have_no_gradient_and_change_nothing(ignored, spatial, spectral, activation):
    logits, labels, valid = ignored
    loss = jax.jit(
        jax.value_and_grad(
            partial(
                harmonized_loss,
                spatial=spatial,
                spectral=spectral,
                weight=0.5,
                activation=activation,
                ignore_label=IGNORE,
            )
        )
    )
    value, gradient = loss(logits, labels)
    assert float(value) > 0
    assert (np.asarray(gradient)[~valid] == 0).all()
    assert np.abs(np.asarray(gradient)[valid]).min(axis=-1).max() > 0
    elsewhere = jnp.where(valid[..., None], logits, 30 * logits[::-1])
    other_value, other_gradient = loss(elsewhere, labels)
    np.testing.assert_array_equal(value, other_value)
    np.testing.assert_array_equal(gradient, other_gradient)
    # a plain label in the place of the ignored one does count
    assert not np.allclose(value, loss(logits, labels.at[~valid].set(1))[0], rtol=1e-3)


@pytest.mark.parametrize("name", ["softmax", "sigmoid", *LOSSES])
def test_what_is_ignored_may_as_well_be_cut_off(rng, name):
    """A loss of pixels is that of the picture without the strip that does not count."""
    logits, labels = scene(rng)
    targets = jax.nn.one_hot(labels, 3)
    valid = jnp.ones(labels.shape, bool).at[:, 8:].set(False)
    whole, cut = (logits, targets), (logits[:, :8], targets[:, :8])
    if name in ("softmax", "sigmoid"):
        loss = partial(
            cross_entropy_loss, activation=name, class_weights=(1, 3, 2), label_smoothing=0.1
        )
    elif name == "focal_frequency":
        loss = partial(LOSSES[name], alpha=0.0)  # by Parseval, a mean over pixels
    else:
        loss = LOSSES[name]
    if name in LOSSES and name != "cross_entropy":
        whole, cut = ((activate(x, "softmax"), y) for x, y in (whole, cut))
    expected = loss(*cut)
    np.testing.assert_allclose(loss(*whole, valid=valid), expected, rtol=2e-6)
    assert not np.allclose(loss(*whole), expected, rtol=1e-4)


def test_full_band_by_fourier_is_pearson_over_the_pixels_that_count(ignored):
    logits, labels, valid = ignored
    p, t = activate(logits, "softmax"), jax.nn.one_hot(labels, 3)
    with jax.enable_x64(True):
        p, t = (jnp.asarray(np.asarray(x), jnp.float64) for x in (p, t))
        # weights of the full band, which are not seen to be all alike
        everywhere = lambda radius: np.ones_like(radius)  # noqa: E731
        rho = spectral_correlation(p, t, band=everywhere, epsilon=1e-12, valid=valid)
        fourier = spectral_correlation_loss(p, t, band=everywhere, valid=valid)
        spatial = pearson_loss(p, t, valid=valid)
        concordance = {**PRESETS["concordance"], "valid": valid}
        pooled = spectral_correlation_loss(p, t, **{**concordance, "band": everywhere})
        twin = spectral_correlation_loss(p, t, **concordance)
    for sample in range(3):
        for c in range(3):
            pixels = np.asarray(valid[sample])
            by_numpy = np.corrcoef(p[sample, ..., c][pixels], t[sample, ..., c][pixels])[0, 1]
            assert float(rho[sample, c]) == pytest.approx(by_numpy, abs=1e-9)
    np.testing.assert_allclose(fourier, spatial, rtol=1e-12)
    np.testing.assert_allclose(pooled, twin, rtol=1e-12)


def test_a_batch_without_a_pixel_that_counts_teaches_nothing(rng):
    logits, labels = scene(rng)
    for spectral in ("paper", "midband", "focal_frequency"):
        loss = partial(harmonized_loss, spatial="dice_ce", spectral=spectral, ignore_label=IGNORE)
        value, gradient = jax.jit(jax.value_and_grad(loss))(logits, jnp.full_like(labels, IGNORE))
        assert float(value) == 0
        assert not gradient.any()


@pytest.mark.parametrize("spectral", ["paper", "midband"])
def test_sharded_over_the_batch_equals_one_device(ignored, spectral):
    """Devices that have more and less to ignore still average over the pixels of all."""
    logits, labels, _ = ignored
    spatial = {
        "cross_entropy": {"class_weights": (1.0, 4.0, 2.0)},
        "tversky": {"pooling": "batch"},
        "dice": {},
    }
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    loss = partial(harmonized_loss, spatial=spatial, spectral=spectral, ignore_label=IGNORE)
    sharded = jax.shard_map(
        partial(loss, axis_name="data"), mesh=mesh, in_specs=P("data"), out_specs=P()
    )
    step = jax.jit(jax.value_and_grad(sharded))
    value, gradient = step(*jax.device_put((logits, labels), NamedSharding(mesh, P("data"))))
    exact_value, exact_gradient = jax.jit(jax.value_and_grad(loss))(logits, labels)
    np.testing.assert_allclose(value, exact_value, rtol=1e-5)
    np.testing.assert_allclose(gradient, exact_gradient, atol=1e-7)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def test_one_channel_is_a_two_class_problem(rng):
    """Its masks of integers are the sigmoid's targets, and its gradient goes everywhere."""
    logits = rng.standard_normal((2, 8, 8, 1)).astype(np.float32)
    labels = rng.integers(0, 2, (2, 8, 8))
    terms = harmonized_terms(logits, jnp.asarray(labels), spatial="dice_ce", activation="sigmoid")
    p = sigmoid(logits[..., 0])
    cross_entropy = -np.where(labels, np.log(p), np.log(1 - p)).mean()
    dice = 1 - (2 * (p * labels).sum() + 1e-5) / ((p**2).sum() + labels.sum() + 1e-5)
    pearson = np.mean(
        [1 - np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(p, labels, strict=True)]
    )
    assert float(terms["cross_entropy"]) == pytest.approx(cross_entropy, rel=1e-5)
    assert float(terms["dice"]) == pytest.approx(dice, rel=1e-5)
    assert float(terms["spectral"]) == pytest.approx(pearson, rel=1e-4)
    gradient = jax.grad(harmonized_loss)(logits, jnp.asarray(labels), activation="sigmoid")
    assert np.abs(gradient).min() > 0


def test_overlapping_classes_are_scored_each_for_itself(rng):
    """A loss of two masks is the mean of the losses of each; integers are masks without overlap."""
    logits = rng.standard_normal((2, 16, 16, 2)).astype(np.float32)
    masks = jnp.asarray(rng.integers(0, 2, logits.shape), jnp.float32)
    for spatial in SPATIAL:
        loss = partial(harmonized_terms, spatial=spatial, spectral="midband", activation="sigmoid")
        both = loss(logits, masks)
        alone = [loss(logits[..., c : c + 1], masks[..., c : c + 1]) for c in (0, 1)]
        for name, value in both.items():
            mean = (alone[0][name] + alone[1][name]) / 2
            np.testing.assert_allclose(value, mean, rtol=1e-5, err_msg=name)
    labels = jnp.asarray(rng.integers(0, 3, (2, 16, 16)), jnp.uint8)
    as_masks = jax.nn.one_hot(labels, 3)[..., 1:]
    np.testing.assert_array_equal(
        harmonized_loss(logits, labels, activation="sigmoid"),
        harmonized_loss(logits, as_masks, activation="sigmoid"),
    )


def test_a_softmax_over_one_channel_is_refused(rng):
    logits = jnp.asarray(rng.standard_normal((2, 8, 8, 1)), jnp.float32)
    labels = jnp.ones((2, 8, 8), jnp.int32)
    targets = jnp.ones((2, 8, 8, 1))
    for call in (
        lambda: activate(logits, "softmax"),
        lambda: cross_entropy_loss(logits, targets),
        lambda: harmonized_loss(logits, labels),
        lambda: harmonized_loss(logits, labels, spectral=None),
        lambda: harmonized_loss(logits, labels, include_background=True),
        lambda: harmonized_loss(logits, targets, spatial="ce", spectral="midband"),
    ):
        with pytest.raises(ValueError, match="activation='sigmoid'"):
            call()


def test_class_weights_and_smoothing_by_hand(rng):
    logits, labels = scene(rng)
    targets = np.eye(3)[labels]
    weights = np.array([0.5, 2.0, 3.0])
    soft = 0.8 * targets + 0.2 / 3
    log_p = np.log(np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(-1, keepdims=True))
    expected = -(weights * soft * log_p).sum() / weights[labels].sum()
    options = {"class_weights": weights, "label_smoothing": 0.2}
    loss = cross_entropy_loss(logits, jnp.asarray(targets, jnp.float32), **options)
    assert float(loss) == pytest.approx(expected, rel=1e-5)

    p = sigmoid(logits)
    soft = 0.8 * targets + 0.1
    expected = -(weights * soft * np.log(p) + (1 - soft) * np.log(1 - p)).mean()
    loss = cross_entropy_loss(
        logits, jnp.asarray(targets, jnp.float32), activation="sigmoid", **options
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_tversky_weighs_false_positives_and_false_negatives(rng):
    logits, labels = scene(rng)
    p, t = activate(logits, "softmax"), jax.nn.one_hot(labels, 3)
    for pooling in ("sample", "batch"):
        # Dice counts its smoothing once where the same formula with halves counts it twice
        dice = dice_loss(p, t, pooling=pooling, smooth=2e-5)
        half = tversky_loss(p, t, pooling=pooling, alpha=0.5, beta=0.5)
        np.testing.assert_allclose(half, dice, rtol=1e-5)
    p, t = np.float64(p), np.float64(t)
    both, false_p, false_n = ((a * b).sum((1, 2)) for a, b in ((p, t), (p, 1 - t), (1 - p, t)))
    expected = 1 - ((both + 1e-5) / (both + 0.2 * false_p + 0.9 * false_n + 1e-5)).mean()
    loss = tversky_loss(*map(partial(jnp.asarray, dtype=jnp.float32), (p, t)), alpha=0.2, beta=0.9)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [dice_loss, tversky_loss])
def test_class_weights_multiply_the_losses_of_classes(rng, loss):
    logits, labels = scene(rng)
    p, t = activate(logits, "softmax"), jax.nn.one_hot(labels, 3)
    of_class = [float(loss(p[..., c : c + 1], t[..., c : c + 1])) for c in range(3)]
    weighted = loss(p, t, class_weights=(0.5, 2.0, 3.0))
    assert float(weighted) == pytest.approx(np.dot((0.5, 2.0, 3.0), of_class) / 3, rel=1e-6)
    weighted = loss(p, t, class_weights=(0.5, 2.0, 3.0), include_background=False)
    assert float(weighted) == pytest.approx(np.dot((2.0, 3.0), of_class[1:]) / 2, rel=1e-6)


def test_any_loss_by_keywords_and_the_weight_of_each(rng):
    logits, labels = scene(rng)
    p, t = activate(logits, "softmax"), jax.nn.one_hot(labels, 3)
    spatial = {
        "cross_entropy": {"weight": 0.25, "label_smoothing": 0.1},
        "dice": {"include_background": False, "pooling": "batch"},
        "spectral_correlation": {"weight": 2.0, "normalisation": "concordance"},
    }
    terms = harmonized_terms(logits, labels, spatial=spatial, spectral="pearson", weight=0.5)
    expected = {
        "cross_entropy": cross_entropy_loss(logits, t, label_smoothing=0.1),
        "dice": dice_loss(p, t, include_background=False, pooling="batch"),
        "spectral_correlation": spectral_correlation_loss(p, t, normalisation="concordance"),
        "spectral": pearson_loss(p, t),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-6, err_msg=name)
    shares = {"cross_entropy": 0.25, "dice": 1.0, "spectral_correlation": 2.0, "spectral": 0.5}
    total = sum(share * float(expected[name]) for name, share in shares.items())
    assert float(terms["loss"]) == pytest.approx(total, rel=1e-6)
    for name, keywords in SPATIAL.items():
        np.testing.assert_array_equal(
            harmonized_loss(logits, labels, spatial=keywords),
            harmonized_loss(logits, labels, spatial=name),
        )


def test_wrong_input_is_named(rng):
    logits, labels = scene(rng)
    targets = jax.nn.one_hot(labels, 3)
    for call, message in (
        (lambda: harmonized_loss(logits, targets, ignore_label=255), "give valid instead"),
        (lambda: harmonized_loss(logits, labels, activation="relu"), "activation='relu'"),
        (lambda: harmonized_loss(logits, labels, spatial={"jaccard": {}}), "jaccard"),
        (lambda: dice_loss(logits, targets, valid=jnp.ones((4, 12), bool)), "valid has shape"),
        (lambda: cross_entropy_loss(logits, targets, class_weights=(1, 2)), "for 3 classes"),
        (lambda: cross_entropy_loss(logits, targets, label_smoothing=1.0), "label_smoothing=1"),
        (lambda: tversky_loss(logits, targets, alpha=-0.1), "must not be negative"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
