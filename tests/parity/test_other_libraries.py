"""The losses and surface Dice beside PyTorch's, MONAI's and segmentation_models.pytorch's.

Values and gradients, in float64. Needs `pip install -e '.[parity]'`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.losses import activate, cross_entropy_loss, dice_loss, tversky_loss
from spectral_jax.metrics.surface import nsd, surface_distances

REASON = "other libraries are an extra of their own: pip install -e '.[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
monai_losses = pytest.importorskip("monai.losses", reason=REASON)
smp = pytest.importorskip("segmentation_models_pytorch.losses", reason=REASON)

CLASSES = 3
IGNORE = 255
WEIGHTS = (0.25, 1.0, 1.75)


@pytest.fixture
def scene(rng):
    """Logits and labels in which every class is there, and a fifth of the pixels is ignored."""
    logits = 2 * rng.standard_normal((2, 12, 10, CLASSES))
    labels = (logits + rng.standard_normal(logits.shape)).argmax(-1)
    return logits, np.where(rng.random(labels.shape) < 0.2, IGNORE, labels)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def channels_first(x):
    return torch.tensor(np.moveaxis(np.asarray(x, np.float64), -1, 1), requires_grad=True)


def assert_equal(ours, logits, theirs):
    """`ours` of our logits and `theirs` of channels-first ones have one value and one gradient."""
    value, gradient = jax.value_and_grad(ours)(jnp.asarray(logits))
    inputs = channels_first(logits)
    expected = theirs(inputs)
    expected.backward()
    np.testing.assert_allclose(float(value), expected.item(), rtol=1e-7)
    np.testing.assert_allclose(gradient, np.moveaxis(inputs.grad.numpy(), 1, -1), atol=1e-9)


def one_hot(labels):
    return jax.nn.one_hot(labels, CLASSES, dtype=jnp.float64)  # nothing where it is ignored


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_pytorchs(scene, weights, smoothing):
    logits, labels = scene
    theirs = torch.nn.CrossEntropyLoss(
        weight=None if weights is None else torch.tensor(weights, dtype=torch.float64),
        ignore_index=IGNORE,
        label_smoothing=smoothing,
    )
    ours = partial(
        cross_entropy_loss,
        targets=one_hot(labels),
        valid=jnp.asarray(labels != IGNORE),
        class_weights=weights,
        label_smoothing=smoothing,
    )
    assert_equal(ours, logits, lambda x: theirs(x, torch.tensor(labels)))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_sigmoid_cross_entropy_is_pytorchs(scene, rng, weights):
    logits, _ = scene
    masks = rng.integers(0, 2, logits.shape).astype(np.float64)  # overlapping
    theirs = torch.nn.BCEWithLogitsLoss(
        pos_weight=None
        if weights is None
        else torch.tensor(weights, dtype=torch.float64)[:, None, None]
    )
    ours = partial(
        cross_entropy_loss,
        targets=jnp.asarray(masks),
        activation="sigmoid",
        class_weights=weights,
    )
    target = channels_first(masks).detach()
    assert_equal(ours, logits, lambda x: theirs(x, target))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("squared", "batch"), [(False, False), (True, True)])
def test_masked_dice_is_monais(scene, activation, weights, squared, batch):
    logits, labels = scene
    valid = labels != IGNORE
    theirs = monai_losses.MaskedDiceLoss(
        softmax=activation == "softmax",
        sigmoid=activation == "sigmoid",
        squared_pred=squared,
        batch=batch,
        weight=weights,
    )

    def ours(logits):
        return dice_loss(
            activate(logits, activation),
            one_hot(labels),
            squared_denominator=squared,
            pooling="batch" if batch else "sample",
            class_weights=weights,
            valid=jnp.asarray(valid),
        )

    target, mask = channels_first(one_hot(labels)).detach(), torch.tensor(valid[:, None])
    assert_equal(ours, logits, lambda x: theirs(x, target, mask))


def test_dice_and_cross_entropy_with_weights_are_monais(scene):
    """Its `weight` weighs the classes of both terms."""
    logits, labels = scene
    labels = np.where(labels == IGNORE, 0, labels)
    theirs = monai_losses.DiceCELoss(
        softmax=True, to_onehot_y=True, weight=torch.tensor(WEIGHTS, dtype=torch.float64)
    )

    def ours(logits):
        dice = dice_loss(activate(logits, "softmax"), one_hot(labels), class_weights=WEIGHTS)
        return dice + cross_entropy_loss(logits, one_hot(labels), class_weights=WEIGHTS)

    assert_equal(ours, logits, lambda x: theirs(x, torch.tensor(labels[:, None])))


@pytest.mark.parametrize("pooling", ["sample", "batch"])
def test_tversky_is_monais(scene, pooling):
    logits, labels = scene
    theirs = monai_losses.TverskyLoss(
        softmax=True, alpha=0.3, beta=0.7, batch=pooling == "batch", smooth_nr=1e-5, smooth_dr=1e-5
    )

    def ours(logits):
        return tversky_loss(activate(logits, "softmax"), one_hot(labels), pooling=pooling)

    target = channels_first(one_hot(labels)).detach()
    assert_equal(ours, logits, lambda x: theirs(x, target))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_dice_that_ignores_is_that_of_segmentation_models(scene, weights):
    logits, labels = scene
    theirs = smp.DiceLoss(
        "multiclass", smooth=1.0, ignore_index=IGNORE, class_weights=weights and list(weights)
    )

    def ours(logits):
        return dice_loss(
            activate(logits, "softmax"),
            one_hot(labels),
            pooling="batch",
            smooth=2.0,  # they count it twice
            class_weights=weights,
            valid=jnp.asarray(labels != IGNORE),
        )

    assert_equal(ours, logits, lambda x: theirs(x, torch.tensor(labels)))


def test_binary_dice_that_ignores_is_that_of_segmentation_models(scene):
    logits, labels = scene
    logits, labels = logits[..., :1], np.where(labels == 2, 1, labels)
    theirs = smp.DiceLoss("binary", smooth=1.0, ignore_index=IGNORE)

    def ours(logits):
        return dice_loss(
            activate(logits, "sigmoid"),
            jnp.asarray(labels == 1, jnp.float64)[..., None],
            pooling="batch",
            smooth=2.0,  # they count it twice
            valid=jnp.asarray(labels != IGNORE),
        )

    assert_equal(ours, logits, lambda x: theirs(x, torch.tensor(labels[:, None])))


def test_tversky_is_that_of_segmentation_models(scene, rng):
    logits, _ = scene
    masks = rng.integers(0, 2, logits.shape).astype(np.float64)
    theirs = smp.TverskyLoss("multilabel", smooth=1.0, alpha=0.2, beta=0.9)

    def ours(logits):
        probabilities = activate(logits, "sigmoid")
        return tversky_loss(probabilities, masks, alpha=0.2, beta=0.9, pooling="batch", smooth=1.0)

    target = channels_first(masks).detach()
    assert_equal(ours, logits, lambda x: theirs(x, target))


@pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 2.0)])
def test_surface_dice_is_monais(rng, spacing):
    metrics = pytest.importorskip("monai.metrics", reason=REASON)
    from scipy import ndimage

    noise = ndimage.gaussian_filter(rng.standard_normal((2, 14, 20, 18)), (0, 2, 2, 2))
    truth, prediction = noise[0] > 0, noise[0] + 0.4 * noise[1] > 0.02
    for tolerance in (0.5, 1.0, 2.0):
        ours = nsd(surface_distances(prediction, truth, spacing), tolerance)
        theirs = metrics.compute_surface_dice(
            torch.tensor(prediction[None, None]),
            torch.tensor(truth[None, None]),
            class_thresholds=[tolerance],
            include_background=True,
            spacing=spacing,
        )
        assert ours == pytest.approx(theirs.item(), abs=1e-7)
        assert 0 < ours < 1
