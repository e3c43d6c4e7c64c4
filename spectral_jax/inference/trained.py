"""A trained network, read from a run's folder."""

import dataclasses
from typing import Any

from etils import epath
from flax import linen as nn

from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.losses.activation import Activation
from spectral_jax.training.config import Config
from spectral_jax.training.restore import restore_network
from spectral_jax.training.run import read_config, read_dataset_info


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network with the parameters of a checkpoint.

    Attributes:
      config: of the run.
      data: what the network was trained on.
      model: the module.
      variables: what to apply it with.
      step: of the checkpoint.
    """

    config: Config
    data: DatasetInfo
    model: nn.Module
    variables: dict[str, Any]
    step: int

    @property
    def activation(self) -> Activation:
        """What makes probabilities of its logits."""
        return self.config.model.activation_for(self.data.overlapping)

    @property
    def labels(self) -> Labels:
        """How its predictions are to be read: with "sigmoid", classes may overlap."""
        return Labels(len(self.data.classes) - 1, overlapping=self.activation == "sigmoid")

    def channel(self, number: int) -> int:
        """Where the logits have a class: with "sigmoid" the background has none."""
        return number - 1 if self.labels.overlapping else number


def restore(workdir: epath.Path, checkpoint: str = "best") -> TrainedModel:
    """Loads the network of a run.

    Args:
      workdir: the run's folder.
      checkpoint: "best" (highest validation Dice) or "last".

    Raises:
      ConfigError: if there is no run, or no checkpoint yet.
    """
    config = read_config(workdir)
    data = read_dataset_info(workdir)
    model, variables, step = restore_network(workdir, config, data, checkpoint)
    return TrainedModel(config, data, model, variables, step)
