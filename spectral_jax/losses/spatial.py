"""Losses that compare probabilities with targets pixel by pixel.

Everywhere `probabilities` and `targets` are `[batch, *spatial, classes]` with two or three spatial
axes; targets are one-hot, or any number of ones where classes overlap. All of it is computed in
float32 (float64 stays float64). `valid` `[batch, *spatial]` is true for the pixels that count: the
others change neither a value nor a gradient, which is exactly 0 there. `axis_name` is for use
inside `jax.shard_map`: the mesh axis, or axes, over which the batch is split; sums over the batch
then run over all of it.
"""

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Num

from spectral_jax.losses.activation import Activation, AnyArray, check_activation, check_option

AxisName = Hashable | tuple[Hashable, ...] | None
Pooling = Literal["sample", "batch"]
POOLINGS = ("sample", "batch")
Valid = Bool[AnyArray, "batch *spatial"] | None
ClassWeights = Sequence[float] | Num[AnyArray, " classes"] | None


def sum_over_devices(x: Array, axis_name: AxisName) -> Array:
    """Adds up `x` over the mesh axes `axis_name`; `None` means that there is nothing to add."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def mean_over_devices(x: Array, axis_name: AxisName) -> Float[Array, ""]:
    """Mean of all of `x` and, of equal shards, over the mesh axes; one number leaves a device."""
    mean = jnp.mean(x)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def working_dtype(x: AnyArray) -> type:
    """Losses are computed in float32 whatever comes in, but for float64."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def prepare(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    include_background: bool,
    valid: Valid = None,
) -> tuple[Float[Array, "batch *spatial kept"], Float[Array, "batch *spatial kept"]]:
    """Checks the shapes and casts to float32 or float64.

    Both are 0 where `valid` is false; the first class is dropped unless it is wanted.
    """
    if probabilities.ndim not in (4, 5):
        raise ValueError(
            "expected [batch, height, width, classes] or [batch, depth, height, width, classes], "
            f"got shape {probabilities.shape}"
        )
    if probabilities.shape != targets.shape:
        raise ValueError(
            f"probabilities {probabilities.shape} and targets {targets.shape} must have one shape; "
            "targets are one-hot: jax.nn.one_hot(labels, classes)"
        )
    if not include_background and probabilities.shape[-1] < 2:
        raise ValueError("one class only and include_background=False: nothing is left to compare")
    dtype = working_dtype(probabilities)
    first = 0 if include_background else 1
    probabilities, targets = (jnp.asarray(x, dtype) for x in (probabilities, targets))
    if valid is not None:
        if valid.shape != targets.shape[:-1]:
            raise ValueError(
                f"valid has shape {valid.shape}, expected that of the labels: {targets.shape[:-1]}"
            )
        probabilities, targets = (where_valid(x, valid) for x in (probabilities, targets))
    return probabilities[..., first:], targets[..., first:]


def where_valid(
    x: Float[Array, "batch *spatial classes"], valid: Valid
) -> Float[Array, "batch *spatial classes"]:
    """Puts 0 where a pixel does not count."""
    return x if valid is None else jnp.where(valid[..., None], x, 0)


def spatial_axes(x: Array) -> tuple[int, ...]:
    """The axes between the batch and the classes."""
    return tuple(range(1, x.ndim - 1))


def mean_over_pixels(
    x: Float[Array, "batch *spatial classes"], valid: Valid, *, keepdims: bool = False
) -> Float[Array, "batch *ones classes"]:
    """Mean over the pixels that count; `x` is 0 at the others. 0 where none counts."""
    axes = spatial_axes(x)
    if valid is None:
        return jnp.mean(x, axis=axes, keepdims=keepdims)
    total = jnp.sum(x, axis=axes, keepdims=keepdims)
    count = jnp.sum(valid, axis=axes, dtype=x.dtype)
    return total / jnp.maximum(count, 1).reshape(-1, *[1] * (total.ndim - 1))


def present_classes(
    targets: Float[Array, "batch *spatial classes"], valid: Valid
) -> Float[Array, "batch classes"]:
    """One where the target mask is neither empty nor full, that is where a correlation exists."""
    area = mean_over_pixels(targets, valid)
    return ((area > 0) & (area < 1)).astype(targets.dtype)


def mean_over_present(
    losses: Float[Array, "*batch classes"],
    present: Float[Array, "*batch classes"],
    axis_name: AxisName,
) -> Float[Array, ""]:
    """Mean of the losses where `present` weighs them; 0 if nothing is present."""
    return ratio_over_devices(jnp.sum(losses * present), jnp.sum(present), axis_name)


def ratio_over_devices(
    total: Float[Array, ""], weight: Float[Array, ""], axis_name: AxisName
) -> Float[Array, ""]:
    """Sum of the totals of all devices over that of the weights; 0 without any weight."""
    total, weight = (sum_over_devices(x, axis_name) for x in (total, weight))
    return total / jnp.where(weight > 0, weight, 1)


class Powers(NamedTuple):
    """Covariance of two masks, or the cross-power of their spectra, and the power of each."""

    cross: Float[Array, "..."]
    prediction: Float[Array, "..."]
    target: Float[Array, "..."]


def centred(
    x: Float[Array, "batch *spatial classes"], valid: Valid
) -> Float[Array, "batch *spatial classes"]:
    """`x` less its mean over the pixels that count; 0 at the others."""
    return where_valid(x - mean_over_pixels(x, valid, keepdims=True), valid)


def centred_powers(
    p: Float[Array, "batch *spatial classes"],
    m: Float[Array, "batch *spatial classes"],
    valid: Valid,
) -> Powers:
    """Covariance of `p` and `m` and the variances of both over the pixels that count."""
    p, m = centred(p, valid), centred(m, valid)
    return Powers(*(mean_over_pixels(x * y, valid) for x, y in ((p, m), (p, p), (m, m))))


def dice_loss(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    squared_denominator: bool = False,
    pooling: Pooling = "sample",
    include_background: bool = True,
    class_weights: ClassWeights = None,
    smooth: float = 1e-5,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Soft Dice loss, `1 - (2 Σ pt + s) / (Σ p + Σ t + s)`, averaged over samples and classes.

    V-Net (arXiv 1606.04797) squares the summands of the denominator. TransUNet (arXiv 2102.04306)
    does too, and sums over the batch: `squared_denominator=True, pooling="batch"`.

    Args:
      probabilities: `[batch, *spatial, classes]`, any float type.
      targets: one-hot, `[batch, *spatial, classes]`.
      squared_denominator: `Σ p² + Σ t²` instead of `Σ p + Σ t`.
      pooling: "sample": one Dice per sample and class; "batch": one per class, of sums over
        the batch.
      include_background: whether the first class counts.
      class_weights: one for each class, the background included; a class's loss is multiplied by
        its weight before the mean.
      smooth: `s`, in pixels; makes an empty prediction of an empty mask score a loss of 0.
      valid: see the module.
      axis_name: see the module.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: for unequal shapes or an unknown option.

    >>> import jax.numpy as jnp
    >>> p = jnp.array([0.8, 0.6]).reshape(1, 1, 2, 1)
    >>> t = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    >>> print(f"{dice_loss(p, t):.4f}")  # 1 - 1.6 / 2.4
    0.3333
    """
    p, t = prepare(probabilities, targets, include_background, valid)
    size = p * p + t * t if squared_denominator else p + t
    intersection, size = pooled_sums((p * t, size), pooling, axis_name)
    losses = 1 - (2 * intersection + smooth) / (size + smooth)
    weights = weights_of(class_weights, probabilities)[-losses.shape[-1] :]
    return mean_of_pooled(losses * weights, pooling, axis_name)


def weights_of(
    class_weights: ClassWeights, x: Float[AnyArray, "batch *spatial classes"]
) -> Float[Array, " classes"]:
    """The weights, 1 without them.

    Raises:
      ValueError: unless there is one for each class.
    """
    classes = x.shape[-1]
    if class_weights is None:
        return jnp.ones(classes, working_dtype(x))
    weights = jnp.asarray(class_weights, working_dtype(x))
    if weights.shape != (classes,):
        raise ValueError(f"class_weights of shape {weights.shape} for {classes} classes")
    return weights


def pooled_sums(
    values: Sequence[Float[Array, "batch *spatial classes"]], pooling: Pooling, axis_name: AxisName
) -> list[Float[Array, "*batch classes"]]:
    """Sums over pixels, and with `pooling="batch"` over the whole batch."""
    check_option("pooling", pooling, POOLINGS)
    sums = [jnp.sum(x, axis=spatial_axes(x)) for x in values]
    if pooling == "batch":
        sums = [sum_over_devices(jnp.sum(x, axis=0), axis_name) for x in sums]
    return sums


def mean_of_pooled(
    losses: Float[Array, "*batch classes"], pooling: Pooling, axis_name: AxisName
) -> Float[Array, ""]:
    """Mean of losses made of `pooled_sums`, which each device has all of if they are pooled."""
    return jnp.mean(losses) if pooling == "batch" else mean_over_devices(losses, axis_name)


def tversky_loss(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    pooling: Pooling = "sample",
    include_background: bool = True,
    class_weights: ClassWeights = None,
    smooth: float = 1e-5,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Tversky loss (arXiv 1706.05721), `1 - (TP + s) / (TP + α FP + β FN + s)` of soft counts.

    `TP = Σ pt`, `FP = Σ p (1 - t)`, `FN = Σ (1 - p) t`. With both weights 1/2 it is `dice_loss`;
    `beta` above `alpha` favours recall.

    Args:
      probabilities: `[batch, *spatial, classes]`, any float type.
      targets: one-hot, `[batch, *spatial, classes]`.
      alpha: weight of false positives.
      beta: weight of false negatives.
      pooling: as for `dice_loss`.
      include_background: whether the first class counts.
      class_weights: as for `dice_loss`.
      smooth: `s`, in pixels.
      valid: see the module.
      axis_name: see the module.

    Returns:
      A scalar in [0, 1].

    Raises:
      ValueError: for unequal shapes, an unknown option or a negative weight.

    >>> import jax.numpy as jnp
    >>> p = jnp.array([0.8, 0.6]).reshape(1, 1, 2, 1)
    >>> t = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    >>> print(f"{tversky_loss(p, t, alpha=0.5, beta=1.0):.4f}")  # 1 - 0.8 / (0.8 + 0.3 + 0.2)
    0.3846
    """
    if alpha < 0 or beta < 0:
        raise ValueError(f"alpha={alpha} and beta={beta} must not be negative")
    p, t = prepare(probabilities, targets, include_background, valid)
    both, predicted, true = pooled_sums((p * t, p, t), pooling, axis_name)
    size = both + alpha * (predicted - both) + beta * (true - both)
    losses = 1 - (both + smooth) / (size + smooth)
    weights = weights_of(class_weights, probabilities)[-losses.shape[-1] :]
    return mean_of_pooled(losses * weights, pooling, axis_name)


def cross_entropy_loss(
    logits: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    activation: Activation = "softmax",
    class_weights: ClassWeights = None,
    label_smoothing: float = 0.0,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Cross-entropy of softmax(logits), or the binary one of each sigmoid, averaged over pixels.

    With `softmax` it is `torch.nn.CrossEntropyLoss`, with `sigmoid` `torch.nn.BCEWithLogitsLoss`,
    their weights included.

    Args:
      logits: `[batch, *spatial, classes]`, any float type.
      targets: one-hot, `[batch, *spatial, classes]`; for "sigmoid" any number of ones.
      activation: "softmax": classes exclude each other, and there are at least two; "sigmoid": each
        class for itself, averaged over classes too.
      class_weights: one a class. For "softmax" each pixel counts by the weight of its class, and
        the sum is divided by that of the weights. For "sigmoid" pixels of the class count so many
        times as much as the others (`pos_weight`).
      label_smoothing: share of the target that is spread evenly over all classes ("sigmoid": over
        yes and no).
      valid: see the module.
      axis_name: see the module.

    Returns:
      A scalar, at least 0; 0 if no pixel counts.

    Raises:
      ValueError: for unequal shapes, an unknown option, or a softmax of one class.

    >>> import jax.numpy as jnp
    >>> logits = jnp.log(jnp.array([0.8, 0.2])).reshape(1, 1, 1, 2)
    >>> print(f"{cross_entropy_loss(logits, jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)):.4f}")
    0.2231
    """
    check_activation(activation, logits.shape[-1])
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected a share, 0 or more, below 1")
    logits, targets = prepare(logits, targets, include_background=True, valid=valid)
    classes = logits.shape[-1]
    weights = weights_of(class_weights, logits)
    if activation == "sigmoid":
        soft = targets * (1 - label_smoothing) + label_smoothing / 2
        yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        losses = -jnp.mean(weights * soft * yes + (1 - soft) * no, axis=-1)
    else:
        soft = targets * (1 - label_smoothing) + label_smoothing / classes
        losses = optax.losses.softmax_cross_entropy(logits, weights * soft)
    if valid is None and class_weights is None:
        return mean_over_devices(losses, axis_name)
    counts = jnp.ones_like(losses) if valid is None else valid.astype(losses.dtype)
    total = jnp.sum(losses * counts)
    if class_weights is not None and activation == "softmax":
        counts = jnp.sum(weights * targets, axis=-1)
    return ratio_over_devices(total, jnp.sum(counts), axis_name)


def pearson_loss(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    include_background: bool = False,
    epsilon: float = 1e-6,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """One minus Pearson's correlation over pixels, per sample and class.

    By Parseval's theorem this is `spectral_correlation_loss(**PRESETS["paper"])`; on hard masks the
    coefficient is Matthews'. Classes that are absent from a sample, or fill it, are left out.

    Args:
      probabilities: `[batch, *spatial, classes]`, any float type.
      targets: one-hot, `[batch, *spatial, classes]`.
      include_background: whether the first class counts; of two classes it would count twice.
      epsilon: added to both variances.
      valid: see the module; the correlation is then over the pixels that count.
      axis_name: see the module.

    Returns:
      A scalar in [0, 2]; 0 if no class is present.
    """
    p, m = prepare(probabilities, targets, include_background, valid)
    powers = centred_powers(p, m, valid)
    correlation = powers.cross / jnp.sqrt((powers.prediction + epsilon) * (powers.target + epsilon))
    return mean_over_present(1 - correlation, present_classes(m, valid), axis_name)


def matthews_loss(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    include_background: bool = False,
    epsilon: float = 1e-6,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """One minus the soft Matthews correlation coefficient (arXiv 2010.13454), per sample and class.

    With soft counts in place of counts, the coefficient is `(mean(pt) - p̄ t̄) / sqrt(p̄ (1 - p̄) t̄
    (1 - t̄))`: Pearson's with the variance of a binary mask of the same area in place of that of
    `p`, so that only a binary prediction reaches a loss of 0.

    Arguments and result are those of `pearson_loss`.
    """
    p, t = prepare(probabilities, targets, include_background, valid)
    cross = centred_powers(p, t, valid).cross
    p_area, t_area = (mean_over_pixels(x, valid) for x in (p, t))
    p_power, t_power = p_area * (1 - p_area), t_area * (1 - t_area)
    coefficient = cross / jnp.sqrt((p_power + epsilon) * (t_power + epsilon))
    return mean_over_present(1 - coefficient, present_classes(t, valid), axis_name)
