"""All that a training step reads and writes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; a checkpoint holds exactly this.

    Attributes:
      step: number of updates made, int32.
      params: of the network.
      batch_stats: running statistics of its batch normalisation, `{}` if it has none.
      opt_state: of the optimiser.
      ema_params: running mean of the parameters, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema_params: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What to evaluate the network with."""
        params = self.params if self.ema_params is None else self.ema_params
        return {"params": params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, ...],
    *,
    ema: bool,
) -> TrainState:
    """The state before the first step; works under `jax.jit` and `jax.eval_shape`.

    Args:
      model: the network.
      optimizer: of its parameters.
      key: for the random parameters.
      image_shape: `(*spatial, channels)` of one image.
      ema: whether to keep a running mean of the parameters.
    """
    variables = model.init(key, jnp.zeros((1, *image_shape)))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )
