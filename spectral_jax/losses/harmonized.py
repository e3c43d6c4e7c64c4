"""The objective of arXiv 2401.10373: a spatial loss plus a weighted spectral one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Num

from spectral_jax.losses.activation import Activation, AnyArray, activate, check_option
from spectral_jax.losses.spatial import (
    AxisName,
    Valid,
    cross_entropy_loss,
    dice_loss,
    matthews_loss,
    pearson_loss,
    tversky_loss,
    working_dtype,
)
from spectral_jax.losses.spectral import (
    PRESETS,
    focal_frequency_loss,
    spectral_correlation_loss,
)

LOSSES: dict[str, Callable[..., Float[Array, ""]]] = {
    "cross_entropy": cross_entropy_loss,
    "dice": dice_loss,
    "tversky": tversky_loss,
    "pearson": pearson_loss,
    "matthews": matthews_loss,
    "focal_frequency": focal_frequency_loss,
    "spectral_correlation": spectral_correlation_loss,
}

SPATIAL: dict[str, dict[str, dict[str, Any]]] = {
    "dice": {"dice": {}},
    "ce": {"cross_entropy": {}},
    "dice_ce": {
        "cross_entropy": {"weight": 0.5},
        "dice": {"weight": 0.5, "squared_denominator": True, "pooling": "batch"},
    },
    "tversky": {"tversky": {}},
}
"""Spatial losses by name: the terms that they add up, each a key of `LOSSES` with its keywords."""

SPECTRAL: dict[str, Callable[..., Float[Array, ""]]] = {
    **{name: partial(spectral_correlation_loss, **preset) for name, preset in PRESETS.items()},
    # controls: what a spectral claim has to beat
    "pearson": pearson_loss,
    "matthews": matthews_loss,
    "focal_frequency": focal_frequency_loss,
}


def harmonized_terms(
    logits: Float[AnyArray, "batch *spatial classes"],
    labels: Integer[AnyArray, "batch *spatial"] | Num[AnyArray, "batch *spatial classes"],
    *,
    spatial: str | Mapping[str, Mapping[str, Any]] = "dice",
    spectral: str | Mapping[str, Any] | None = "paper",
    weight: float | Float[AnyArray, ""] = 0.1,
    activation: Activation = "softmax",
    include_background: bool = False,
    ignore_label: int | None = None,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> dict[str, Float[Array, ""]]:
    """The terms of `harmonized_loss` by name, for logging.

    Arguments are those of `harmonized_loss`, and `axis_name`: the mesh axis, or axes, that split
    the batch, when called inside `jax.shard_map`.

    Returns:
      A dictionary of scalars: `loss`, which is the sum; the terms of `spatial` by their names,
      before their weights; and `spectral` before its weight, unless there is none.
    """
    dtype = working_dtype(logits)
    logits = logits.astype(dtype)
    probabilities = activate(logits, activation)
    if labels.ndim == logits.ndim - 1:
        if ignore_label is not None:
            counts = labels != ignore_label
            valid = counts if valid is None else valid & counts
        # with "sigmoid" the background, 0, has no channel
        first = 0 if activation == "softmax" else 1
        targets: AnyArray = jax.nn.one_hot(
            labels.astype(int) - first, logits.shape[-1], dtype=dtype
        )
    elif ignore_label is not None:
        raise ValueError(
            f"ignore_label={ignore_label} is a value of integer labels, but these are masks of "
            f"classes, of shape {labels.shape}: give valid instead"
        )
    else:
        targets = labels
    of_pixels = {"valid": valid, "axis_name": axis_name}
    if activation == "sigmoid":
        include_background = True

    if isinstance(spatial, str):
        check_option("spatial", spatial, tuple(SPATIAL))
        spatial = SPATIAL[spatial]
    terms = {}
    loss = jnp.zeros((), dtype)
    for name, keywords in spatial.items():
        check_option("spatial", name, tuple(LOSSES))
        options = {**keywords, **of_pixels}
        share = options.pop("weight", 1.0)
        if name == "cross_entropy":
            terms[name] = cross_entropy_loss(logits, targets, activation=activation, **options)
        else:
            if activation == "sigmoid":
                options["include_background"] = True
            terms[name] = LOSSES[name](probabilities, targets, **options)
        loss = loss + share * terms[name]

    if spectral is not None:
        if isinstance(spectral, str):
            check_option("spectral", spectral, tuple(SPECTRAL))
            spectral_loss = SPECTRAL[spectral]
        else:
            spectral_loss = partial(spectral_correlation_loss, **spectral)
        terms["spectral"] = spectral_loss(
            probabilities, targets, include_background=include_background, **of_pixels
        )
        loss = loss + jnp.asarray(weight, dtype) * terms["spectral"]
    return {"loss": loss, **terms}


def harmonized_loss(
    logits: Float[AnyArray, "batch *spatial classes"],
    labels: Integer[AnyArray, "batch *spatial"] | Num[AnyArray, "batch *spatial classes"],
    *,
    spatial: str | Mapping[str, Mapping[str, Any]] = "dice",
    spectral: str | Mapping[str, Any] | None = "paper",
    weight: float | Float[AnyArray, ""] = 0.1,
    activation: Activation = "softmax",
    include_background: bool = False,
    ignore_label: int | None = None,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Spatial loss plus `weight` times spectral loss (arXiv 2401.10373).

    Args:
      logits: `[batch, *spatial, classes]`, two or three spatial axes, any float type; the softmax
        and everything after it are computed in float32 (float64 stays float64).
      labels: integers `[batch, *spatial]`, or one-hot `[batch, *spatial, classes]`. A value
        outside 0 ... classes - 1 belongs to no class. With "sigmoid", integers from 1 on are the
        channels and 0 is none of them; masks of classes may overlap.
      spatial: "dice" (linear denominator, per sample); "dice_ce", TransUNet's mean of cross-entropy
        and Dice (squared denominator, pooled over the batch); "ce"; "tversky"; or keywords of
        losses by their names in `LOSSES`, and the `weight` of each in the sum:
        `{"cross_entropy": {"label_smoothing": 0.1}, "dice": {"weight": 2.0}}`. All classes count
        in all of the names.
      spectral: a preset, "paper" or "midband" (see `spectral_correlation_loss`); a control,
        "concordance" (of "midband"), "pearson" (of "paper"), "matthews" or "focal_frequency";
        keywords of `spectral_correlation_loss`; or None for the spatial loss alone.
      weight: of the spectral loss; may be traced, for a schedule. Ramp it up over the first tenth
        of the steps: a correlation has a steep gradient while predictions are still flat.
      activation: "softmax": classes exclude each other, and the first is the background; "sigmoid":
        each class for itself, so that they may overlap, and no channel is the background.
      include_background: whether the first class counts in the spectral loss; of "sigmoid" all do.
      ignore_label: value of integer labels that no term sees, such as 255.
      valid: `[batch, *spatial]`, true for the pixels that count, all without it. What does not
        count changes no value, and its gradient is exactly 0.
      axis_name: the mesh axis, or axes, that split the batch, inside `jax.shard_map`.

    Returns:
      A scalar.

    Raises:
      ValueError: for shapes that do not fit, an unknown option, or a softmax of one channel.

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
        activation=activation,
        include_background=include_background,
        ignore_label=ignore_label,
        valid=valid,
        axis_name=axis_name,
    )["loss"]
