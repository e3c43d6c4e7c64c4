"""From logits to probabilities: of classes that exclude each other, or of each class for itself."""

from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray  # what jax takes
Activation = Literal["softmax", "sigmoid"]
ACTIVATIONS = ("softmax", "sigmoid")


def check_option(name: str, value: str, options: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `options`."""
    if value not in options:
        raise ValueError(f"{name}={value!r}; choose one of {options}")


def check_activation(activation: str, channels: int) -> None:
    """Raises ValueError for an unknown activation, and for a softmax of one channel."""
    check_option("activation", activation, ACTIVATIONS)
    if activation == "softmax" and channels < 2:
        raise ValueError(
            "a softmax over one channel is always 1, and its gradient 0: use two channels, "
            "background first, or activation='sigmoid'"
        )


def activate(
    logits: Float[AnyArray, "*batch channels"], activation: Activation
) -> Float[Array, "*batch channels"]:
    """Probabilities: "softmax" over the channels, or "sigmoid" of each.

    Raises:
      ValueError: for an unknown activation, and for a softmax of one channel.

    >>> import jax.numpy as jnp
    >>> activate(jnp.zeros((1, 2)), "softmax").tolist(), activate(jnp.zeros(1), "sigmoid").tolist()
    ([[0.5, 0.5]], [0.5])
    """
    check_activation(activation, logits.shape[-1])
    return jax.nn.softmax(logits, axis=-1) if activation == "softmax" else jax.nn.sigmoid(logits)
