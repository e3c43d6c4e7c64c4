"""A trained network, or the average of several, read from runs or from weights alone."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath
from flax import linen as nn

from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.files import write_json
from spectral_jax.inference import postprocess
from spectral_jax.inference.postprocess import read_decision
from spectral_jax.losses.activation import Activation
from spectral_jax.models.average import Average, join_variables
from spectral_jax.training.config import Config, ConfigError
from spectral_jax.training.restore import restore_network, write_network
from spectral_jax.training.run import read_config, read_dataset_info


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network with the parameters of a checkpoint.

    Attributes:
      config: of the run.
      data: what the network was trained on.
      model: the module.
      variables: what to apply it with.
      step: of the checkpoint; of an average, of each in turn.
      members: folders of the runs that are averaged; () for a single run.
      largest: numbers of the classes of which only the largest component is kept after the
        network; of an average, those of all.
    """

    config: Config
    data: DatasetInfo
    model: nn.Module
    variables: dict[str, Any]
    step: int | tuple[int, ...]
    members: tuple[str, ...] = ()
    largest: tuple[int, ...] = ()

    @property
    def largest_component(self) -> list[str]:
        """The classes of `largest` by name."""
        return [self.data.classes[number] for number in self.largest]

    @property
    def steps(self) -> tuple[int, ...]:
        """Of the checkpoints, one for each run."""
        return self.step if isinstance(self.step, tuple) else (self.step,)

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
      workdir: the run's folder, or what `write_weights` wrote.
      checkpoint: "best" (highest validation Dice) or "last"; weights alone are of one checkpoint.

    Raises:
      ConfigError: if there is no run, or no checkpoint yet, or if the weights do not fit.
    """
    config = read_config(workdir)
    data = read_dataset_info(workdir)
    model, variables, step = restore_network(workdir, config, data, checkpoint)
    largest = read_decision(workdir, data)
    return TrainedModel(config, data, model, variables, step, largest=largest)


def restore_all(workdirs: Sequence[epath.Path], checkpoint: str = "best") -> TrainedModel:
    """Loads the networks of some runs, as one whose probabilities are the mean of theirs.

    Raises:
      ConfigError: for runs that cannot be averaged, and as `restore` does.
    """
    members = [restore(workdir, checkpoint) for workdir in workdirs]
    return average(members, [str(workdir) for workdir in workdirs])


def average(members: Sequence[TrainedModel], names: Sequence[str]) -> TrainedModel:
    """Networks as one whose probabilities are the mean of theirs; a single one as it is.

    They may be of different kinds, but see images of one size, prepared alike, and know the same
    classes. Flips are those of all.

    Raises:
      ConfigError: naming what differs.
    """
    first, *others = members
    if not others:
        return first
    for name, other in zip(names[1:], others, strict=True):
        theirs, ours = _must_agree(other), _must_agree(first)
        if differ := [key for key in ours if theirs[key] != ours[key]]:
            facts = "; ".join(f"{key} {ours[key]!r} and {theirs[key]!r}" for key in differ)
            raise ConfigError(f"{names[0]} and {name} cannot be averaged: {facts}")
    flip = all(member.config.augment.flip for member in members)
    config = dataclasses.replace(
        first.config, augment=dataclasses.replace(first.config.augment, flip=flip)
    )
    return TrainedModel(
        config=config,
        data=first.data,
        model=Average([member.model for member in members], first.activation == "sigmoid"),
        variables=join_variables([member.variables for member in members]),
        step=tuple(step for member in members for step in member.steps),
        members=tuple(names),
        largest=tuple(n for n in first.largest if all(n in other.largest for other in others)),
    )


def _must_agree(trained: TrainedModel) -> dict[str, Any]:
    """What networks have in common that see the same images and classes."""
    data = dataclasses.asdict(trained.data)
    for of_one_run in ("checksums", "colors", "licence"):
        del data[of_one_run]
    return data | {"input size": trained.config.data.example_size, "activation": trained.activation}


def write_weights(trained: TrainedModel, folder: epath.Path) -> None:
    """Writes a network into a folder that takes the place of its run's: see `write_network`.

    Raises:
      ConfigError: for the average of several runs.
    """
    if isinstance(trained.step, tuple):
        raise ConfigError("weights are written of one run; give predict the folders of all")
    write_network(folder, trained.config, trained.data, trained.variables, trained.step)
    if trained.largest:
        decision = {"largest_component": trained.largest_component}
        write_json(folder / postprocess.FILE, decision)
