"""The objective of arXiv 2401.10373: a spatial loss plus a weighted spectral one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectral_jax.losses.spatial import (
    AxisName,
    check_option,
    cross_entropy_loss,
    dice_loss,
    matthews_loss,
    pearson_loss,
    working_dtype,
)
from spectral_jax.losses.spectral import (
    PRESETS,
    focal_frequency_loss,
    spectral_correlation_loss,
)

Spatial = Literal["dice", "dice_ce", "ce"]
SPATIAL = ("dice", "dice_ce", "ce")

SPECTRAL: dict[str, Callable[..., Float[Array, ""]]] = {
    **{name: partial(spectral_correlation_loss, **preset) for name, preset in PRESETS.items()},
    # controls, as the preset "concordance" is: what a spectral claim has to beat
    "pearson": pearson_loss,
    "matthews": matthews_loss,
    "focal_frequency": focal_frequency_loss,
}


def harmonized_terms(
    logits: Float[Array, "batch *spatial classes"],
    labels: Int[Array, "batch *spatial"] | Float[Array, "batch *spatial classes"],
    *,
    spatial: Spatial = "dice",
    spectral: str | Mapping[str, Any] | None = "paper",
    weight: float | Float[Array, ""] = 0.1,
    include_background: bool = False,
    axis_name: AxisName = None,
) -> dict[str, Float[Array, ""]]:
    """The terms of `harmonized_loss` by name, for logging.

    Arguments are those of `harmonized_loss`, and `axis_name`: the mesh axis, or axes, that split
    the batch, when called inside `jax.shard_map`.

    Returns:
      A dictionary of scalars: `loss`, which is the sum; those of `cross_entropy` and `dice` that
      `spatial` asks for; and `spectral` before its weight, unless there is none.
    """
    check_option("spatial", spatial, SPATIAL)
    dtype = working_dtype(logits)
    if labels.ndim == logits.ndim - 1:
        targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=dtype)
    else:
        targets = labels
    logits = logits.astype(dtype)
    probabilities = jax.nn.softmax(logits, axis=-1)

    terms = {}
    if spatial == "dice":
        terms["dice"] = loss = dice_loss(probabilities, targets, axis_name=axis_name)
    else:
        terms["cross_entropy"] = loss = cross_entropy_loss(logits, targets, axis_name=axis_name)
    if spatial == "dice_ce":
        terms["dice"] = dice_loss(
            probabilities, targets, squared_denominator=True, pooling="batch", axis_name=axis_name
        )
        loss = 0.5 * terms["cross_entropy"] + 0.5 * terms["dice"]

    if spectral is not None:
        if isinstance(spectral, str):
            check_option("spectral", spectral, tuple(SPECTRAL))
            spectral_loss = SPECTRAL[spectral]
        else:
            spectral_loss = partial(spectral_correlation_loss, **spectral)
        terms["spectral"] = spectral_loss(
            probabilities, targets, include_background=include_background, axis_name=axis_name
        )
        loss = loss + jnp.asarray(weight, dtype) * terms["spectral"]
    return {"loss": loss, **terms}


def harmonized_loss(
    logits: Float[Array, "batch *spatial classes"],
    labels: Int[Array, "batch *spatial"] | Float[Array, "batch *spatial classes"],
    *,
    spatial: Spatial = "dice",
    spectral: str | Mapping[str, Any] | None = "paper",
    weight: float | Float[Array, ""] = 0.1,
    include_background: bool = False,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Spatial loss plus `weight` times spectral loss (arXiv 2401.10373).

    Args:
      logits: `[batch, *spatial, classes]`, two or three spatial axes, any float type; the softmax
        and everything after it are computed in float32 (float64 stays float64).
      labels: integers `[batch, *spatial]`, or one-hot `[batch, *spatial, classes]`. A value
        outside 0 ... classes - 1 belongs to no class.
      spatial: "dice" (linear denominator, per sample); "dice_ce", TransUNet's mean of cross-entropy
        and Dice (squared denominator, pooled over the batch); or "ce". All classes count in all.
      spectral: a preset, "paper" or "midband" (see `spectral_correlation_loss`); a control,
        "concordance" (of "midband"), "pearson" (of "paper"), "matthews" or "focal_frequency";
        keywords of `spectral_correlation_loss`; or None for the spatial loss alone.
      weight: of the spectral loss; may be traced, for a schedule. Ramp it up over the first tenth
        of the steps: a correlation has a steep gradient while predictions are still flat.
      include_background: whether the first class counts in the spectral loss.
      axis_name: the mesh axis, or axes, that split the batch, inside `jax.shard_map`.

    Returns:
      A scalar.

    Raises:
      ValueError: for shapes that do not fit or an unknown option.

    >>> import jax.numpy as jnp
    >>> labels = jnp.zeros((1, 8, 8), int).at[:, 2:6, 2:6].set(1)
    >>> logits = 20 * jax.nn.one_hot(labels, 2)
    >>> print(f"{harmonized_loss(logits, labels, weight=0.1):.4f}")
    0.0000
    """
    return harmonized_terms(
        logits,
        labels,
        spatial=spatial,
        spectral=spectral,
        weight=weight,
        include_background=include_background,
        axis_name=axis_name,
    )["loss"]
