"""Losses that compare probabilities with targets pixel by pixel.

Everywhere `probabilities` and `targets` are `[batch, *spatial, classes]` with two or three spatial
axes; targets are one-hot. All of it is computed in float32 (float64 stays float64). `axis_name`
is for use inside `jax.shard_map`: the mesh axis, or axes, over which the batch is split; sums over
the batch then run over all of it.
"""

from collections.abc import Hashable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

AxisName = Hashable | tuple[Hashable, ...] | None
Pooling = Literal["sample", "batch"]
POOLINGS = ("sample", "batch")


def check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `options`."""
    if value not in options:
        raise ValueError(f"{name}={value!r}; choose one of {options}")


def sum_over_devices(x: Array, axis_name: AxisName) -> Array:
    """Adds up `x` over the mesh axes `axis_name`; `None` means that there is nothing to add."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def mean_over_devices(x: Array, axis_name: AxisName) -> Float[Array, ""]:
    """Mean of all of `x` and, of equal shards, over the mesh axes; one number leaves a device."""
    mean = jnp.mean(x)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)


def working_dtype(x: Array) -> type:
    """Losses are computed in float32 whatever comes in, but for float64."""
    return jnp.float64 if x.dtype == jnp.float64 else jnp.float32


def prepare(
    probabilities: Float[Array, "batch *spatial classes"],
    targets: Float[Array, "batch *spatial classes"] | Int[Array, "batch *spatial classes"],
    include_background: bool,
) -> tuple[Float[Array, "batch *spatial classes"], Float[Array, "batch *spatial classes"]]:
    """Checks the shapes, casts to float32 or float64, drops the first class unless it is wanted."""
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
    return probabilities[..., first:], targets[..., first:]


def spatial_axes(x: Array) -> tuple[int, ...]:
    """The axes between the batch and the classes."""
    return tuple(range(1, x.ndim - 1))


def present_classes(
    targets: Float[Array, "batch *spatial classes"],
) -> Float[Array, "batch classes"]:
    """One where the target mask is neither empty nor full, that is where a correlation exists."""
    area = jnp.mean(targets, axis=spatial_axes(targets))
    return ((area > 0) & (area < 1)).astype(targets.dtype)


def mean_over_present(
    losses: Float[Array, "*batch classes"],
    present: Float[Array, "*batch classes"],
    axis_name: AxisName,
) -> Float[Array, ""]:
    """Mean of the losses where `present` weighs them; 0 if nothing is present."""
    total = sum_over_devices(jnp.sum(losses * present), axis_name)
    weight = sum_over_devices(jnp.sum(present), axis_name)
    return total / jnp.where(weight > 0, weight, 1)


class Powers(NamedTuple):
    """Covariance of two masks, or the cross-power of their spectra, and the power of each."""

    cross: Float[Array, "..."]
    prediction: Float[Array, "..."]
    target: Float[Array, "..."]


def centred_powers(
    p: Float[Array, "batch *spatial classes"], m: Float[Array, "batch *spatial classes"]
) -> Powers:
    """Covariance of `p` and `m` and the variances of both over the spatial axes."""
    axes = spatial_axes(p)
    p = p - jnp.mean(p, axis=axes, keepdims=True)
    m = m - jnp.mean(m, axis=axes, keepdims=True)
    return Powers(*(jnp.mean(x * y, axis=axes) for x, y in ((p, m), (p, p), (m, m))))


def dice_loss(
    probabilities: Float[Array, "batch *spatial classes"],
    targets: Float[Array, "batch *spatial classes"] | Int[Array, "batch *spatial classes"],
    *,
    squared_denominator: bool = False,
    pooling: Pooling = "sample",
    include_background: bool = True,
    smooth: float = 1e-5,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    r"""Soft Dice loss, `1 - (2 Σ pt + s) / (Σ p + Σ t + s)`, meant over samples and classes.

    V-Net (arXiv 1606.04797) squares the summands of the denominator. TransUNet (arXiv 2102.04306)
    does too, and sums over the batch: `squared_denominator=True, pooling="batch"`.

    Args:
      probabilities: `[batch, *spatial, classes]`, any float type.
      targets: one-hot, `[batch, *spatial, classes]`.
      squared_denominator: `Σ p² + Σ t²` instead of `Σ p + Σ t`.
      pooling: "sample": one Dice per sample and class; "batch": one per class, of sums over
        the batch.
      include_background: whether the first class counts.
      smooth: `s`, in pixels; makes an empty prediction of an empty mask score a loss of 0.
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
    check_option("pooling", pooling, POOLINGS)
    p, t = prepare(probabilities, targets, include_background)
    axes = spatial_axes(p)
    intersection = jnp.sum(p * t, axis=axes)
    size = jnp.sum(p * p + t * t if squared_denominator else p + t, axis=axes)
    if pooling == "batch":
        intersection, size = (
            sum_over_devices(jnp.sum(x, axis=0), axis_name) for x in (intersection, size)
        )
    losses = 1 - (2 * intersection + smooth) / (size + smooth)
    return jnp.mean(losses) if pooling == "batch" else mean_over_devices(losses, axis_name)


def cross_entropy_loss(
    logits: Float[Array, "batch *spatial classes"],
    targets: Float[Array, "batch *spatial classes"],
    *,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Cross-entropy of softmax(logits), meant over all pixels; from `optax`.

    Args:
      logits: `[batch, *spatial, classes]`, any float type.
      targets: one-hot, `[batch, *spatial, classes]`.
      axis_name: see the module.
    """
    logits, targets = prepare(logits, targets, include_background=True)
    losses = optax.losses.softmax_cross_entropy(logits, targets)
    return mean_over_devices(losses, axis_name)


def pearson_loss(
    probabilities: Float[Array, "batch *spatial classes"],
    targets: Float[Array, "batch *spatial classes"] | Int[Array, "batch *spatial classes"],
    *,
    include_background: bool = False,
    epsilon: float = 1e-6,
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
      axis_name: see the module.

    Returns:
      A scalar in [0, 2]; 0 if no class is present.
    """
    p, m = prepare(probabilities, targets, include_background)
    powers = centred_powers(p, m)
    correlation = powers.cross / jnp.sqrt((powers.prediction + epsilon) * (powers.target + epsilon))
    return mean_over_present(1 - correlation, present_classes(m), axis_name)


def matthews_loss(
    probabilities: Float[Array, "batch *spatial classes"],
    targets: Float[Array, "batch *spatial classes"] | Int[Array, "batch *spatial classes"],
    *,
    include_background: bool = False,
    epsilon: float = 1e-6,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """One minus the soft Matthews correlation coefficient (arXiv 2010.13454), per sample and class.

    With soft counts in place of counts, the coefficient is `(mean(pt) - p̄ t̄) / sqrt(p̄ (1 - p̄) t̄
    (1 - t̄))`: Pearson's with the variance of a binary mask of the same area in place of that of
    `p`, so that only a binary prediction reaches a loss of 0.

    Arguments and result are those of `pearson_loss`.
    """
    p, t = prepare(probabilities, targets, include_background)
    cross = centred_powers(p, t).cross
    p_area, t_area = (jnp.mean(x, axis=spatial_axes(x)) for x in (p, t))
    p_power, t_power = p_area * (1 - p_area), t_area * (1 - t_area)
    coefficient = cross / jnp.sqrt((p_power + epsilon) * (t_power + epsilon))
    return mean_over_present(1 - coefficient, present_classes(t), axis_name)
