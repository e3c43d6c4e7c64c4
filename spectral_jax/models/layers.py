"""Small layers that the networks share."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float


def on_rows(
    dense: Callable[[Array], Array], x: Float[Array, "*batch inputs"]
) -> Float[Array, "*batch outputs"]:
    """A dense layer on the last axis, with all positions as the rows of one matrix.

    With more axes than two, XLA transposes what the kernel's gradient reads, and on CPU computes
    it anew as it does so, element by element.
    """
    y = dense(x.reshape(-1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], *y.shape[1:])


def larger(x: Float[Array, "*shape"], y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The larger of two, element by element; NaN where either is; of equal ones the first.

    The gradient of `jnp.maximum` compares both with the result. XLA may compute that result once
    more, rounded otherwise: then neither is equal, and the gradient is lost.
    """
    return jnp.where((x >= y) | jnp.isnan(x), x, y)
