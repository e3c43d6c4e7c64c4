"""The loss of a run: its configuration's, on labels as its data set stores them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from spectral_jax.data.labels import Labels
from spectral_jax.losses import harmonized_terms
from spectral_jax.losses.activation import Activation
from spectral_jax.training.config import BY_FREQUENCY, Config
from spectral_jax.training.sharding import AXES

Objective = Callable[
    [
        Float[Array, "batch *spatial channels"],
        UInt[Array, "batch *spatial"],
        Float[Array, ""],
    ],
    dict[str, Float[Array, ""]],
]
"""From logits, labels and the spectral weight to the terms of the loss."""


def make_objective(
    config: Config, labels: Labels, class_share: Sequence[float] | None = None
) -> Objective:
    """Returns the loss, to be called inside `jax.shard_map` over the mesh's axes.

    Args:
      config: of the run.
      labels: how those of the data set are to be read.
      class_share: of the training split's pixels, each class's share, the background first; needed
        for class weights by frequency.
    """
    activation = config.model.activation_for(labels.overlapping)
    spatial = config.objective.spatial
    if not isinstance(spatial, str):
        spatial = {
            name: _with_weights(keywords, activation, class_share)
            for name, keywords in spatial.items()
        }

    def objective(logits, label, weight):
        targets = label
        if activation == "sigmoid":
            targets = jnp.asarray(labels.masks(label), jnp.float32)
        return harmonized_terms(
            logits,
            targets,
            spatial=spatial,
            spectral=config.objective.spectral_term,
            weight=weight,
            activation=activation,
            include_background=config.objective.include_background,
            valid=labels.valid(label) if labels.ignore else None,
            axis_name=AXES,
        )

    return objective


def _with_weights(
    keywords: Any, activation: Activation, class_share: Sequence[float] | None
) -> dict[str, Any]:
    if keywords.get("class_weights") != BY_FREQUENCY:
        return dict(keywords)
    if class_share is None:
        raise ValueError("class weights by frequency need the share of each class")
    return {**keywords, "class_weights": weights_by_frequency(class_share, activation)}


def weights_by_frequency(
    class_share: Sequence[float], activation: Activation
) -> Float[np.ndarray, " channels"]:
    """Weights that make up for how rare classes are.

    With "softmax" all classes together weigh alike, `1 / (share x number of classes)`, as
    scikit-learn's "balanced"; a class that does not occur weighs 0. With "sigmoid" yes and no of
    each class weigh alike, `(1 - share) / share`; 1 for a class that does not occur.

    Args:
      class_share: of all pixels that count, the background first.
      activation: of the network.

    >>> weights_by_frequency([0.8, 0.1, 0.1], "softmax").round(2).tolist()
    [0.42, 3.33, 3.33]
    >>> weights_by_frequency([0.8, 0.1, 0.2], "sigmoid").tolist()
    [9.0, 4.0]
    """
    share = np.asarray(class_share, float)
    occurs = share > 0
    safe = np.where(occurs, share, 1.0)
    if activation == "sigmoid":
        return np.where(occurs, (1 - safe) / safe, 1.0)[1:]
    return np.where(occurs, 1 / (safe * occurs.sum()), 0.0)
