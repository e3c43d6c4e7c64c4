"""The parameters of a run, from its folder."""

from typing import Any

import jax
from etils import epath
from flax import linen as nn

from spectral_jax.data.sources import DatasetInfo
from spectral_jax.training import sharding
from spectral_jax.training.build import build
from spectral_jax.training.checkpoint import Checkpoints
from spectral_jax.training.config import Config, ConfigError, MeshConfig


def restore_network(
    workdir: epath.Path, config: Config, data: DatasetInfo, checkpoint: str = "best"
) -> tuple[nn.Module, dict[str, Any], int]:
    """Loads the network of a run.

    Args:
      workdir: the run's folder.
      config: of the run.
      data: what it was trained on.
      checkpoint: "best" (highest validation Dice) or "last".

    Returns:
      The module; what to evaluate it with, on a device of each process; the checkpoint's step.

    Raises:
      ConfigError: if there is no checkpoint yet.
    """
    mesh = sharding.make_mesh(MeshConfig())  # a copy on every device
    built = build(config, data.labels, data.channels, mesh)
    with Checkpoints(workdir) as checkpoints:
        step = {"best": checkpoints.best_step, "last": checkpoints.last_step}[checkpoint]
        if step is None:
            raise ConfigError(f"{workdir} holds no checkpoint yet; train first")
        state = checkpoints.restore(step, built.shapes, built.layout)
    # each process predicts on its own
    state = jax.tree.map(lambda array: array.addressable_data(0), state)
    return built.model, state.variables, step
