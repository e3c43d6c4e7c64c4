"""Small layers that the networks share."""

from collections.abc import Callable

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
