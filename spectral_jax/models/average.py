"""Several networks used as one: the mean of their probabilities."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class Average(nn.Module):
    """Networks that see the same image; the variables of the i-th are under `networks_<i>`.

    Attributes:
      networks: of logits for the same classes.
      sigmoid: whether each class has a sigmoid, instead of a softmax over all.
    """

    networks: Sequence[nn.Module]
    sigmoid: bool = False

    def __call__(
        self, images: Float[Array, "batch *spatial channels"], *, train: bool = False
    ) -> Float[Array, "batch *spatial classes"]:
        """Logits of the mean probabilities."""
        activate = jax.nn.sigmoid if self.sigmoid else jax.nn.softmax
        probabilities = [activate(network(images, train=train)) for network in self.networks]
        mean = jnp.stack(probabilities).mean(0)
        return jnp.log(mean) - jnp.log1p(-mean) if self.sigmoid else jnp.log(mean)


def join_variables(variables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The variables of an `Average`, from those of its networks."""
    return {
        kind: {f"networks_{number}": of[kind] for number, of in enumerate(variables)}
        for kind in variables[0]
    }
