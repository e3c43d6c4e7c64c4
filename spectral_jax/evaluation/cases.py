"""The cases that a measurement goes through, and the file that it leaves in the run's folder."""

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from tqdm import tqdm

from spectral_jax.data.augment import to_unit_range
from spectral_jax.data.datasets import DATASETS, label_map
from spectral_jax.data.geometry import AS_ACQUIRED, Turn, turn_between, turned_sides
from spectral_jax.data.labels import fullest_slice
from spectral_jax.data.pictures import fit_channels
from spectral_jax.data.sources import DatasetInfo, Split, Volume, resize_image, resize_label
from spectral_jax.files import write_arrays, write_json
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training import distributed, sharding
from spectral_jax.training.config import MeshConfig

SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal


@dataclasses.dataclass(frozen=True)
class MatchedVolume(Volume):
    """A case in the terms of a network; its label is background where pixels do not count.

    Attributes:
      valid: `[depth, height, width]`, the pixels that count; None for all.
    """

    valid: np.ndarray | None = None


class MatchedCases:
    """Cases of a split in the terms of a network: its channels and its classes.

    Attributes:
      labels: how labels and predictions are to be read.
      scored: numbers of the network's classes that the split has too.
    """

    def __init__(self, trained: TrainedModel, split: Split):
        """Matches classes by name, or as the data set's entry for its partner says."""
        ours, theirs = trained.data, split.info
        partner = DATASETS[ours.name].partner(theirs.name, ours.classes)
        numbers, names = label_map(partner, theirs.classes, ours.classes)
        self.labels = trained.labels
        if ours.channel_names and theirs.channel_names != ours.channel_names:
            raise ValueError(
                f"{theirs.name!r} has the channels {', '.join(theirs.channel_names) or 'of one'}; "
                f"the network takes {', '.join(ours.channel_names)}, in this order"
            )
        if theirs.overlapping and not self.labels.overlapping:
            raise ValueError(
                f"the classes of {theirs.name!r} overlap, and those of the network exclude each "
                "other: train with --config.model.activation=sigmoid to score it there"
            )
        pairs = {here: int(there) for here, there in enumerate(numbers) if there}
        self._ignore = theirs.ignore
        # what does not count stays apart until `volume` takes it out
        self._table = theirs.labels.translate(pairs, dataclasses.replace(self.labels, ignore=True))
        self.scored = [ours.classes.index(name) for name in names]
        kept = np.isin(np.arange(1, len(ours.classes)), self.scored)
        if self.labels.overlapping:
            self._bits = self.labels.pack(kept)
        self._kept = np.append(0, np.arange(1, len(ours.classes)) * kept).astype(np.uint8)
        self._channels = ours.channels
        self._split = split
        self._turn = _turn_between(theirs, ours)

    def volume(self, name: str) -> MatchedVolume:
        """The case, turned as in training, with labels that mean the network's classes.

        Raises:
          DataError: for colour where the network sees grey.
        """
        volume = self._split.volume(name)
        image, label = (self._turn.apply(array) for array in (volume.image, volume.label))
        image = fit_channels(image, self._channels, f"{self._split.info.name}, {name}")
        label, valid = self._table[label], None
        if self._ignore:
            valid = self.labels.valid(label)
            label = np.where(valid, label, 0).astype(label.dtype)
        spacing = volume.spacing_mm and turned_sides(volume.spacing_mm, self._turn)
        return MatchedVolume(name, image, label, spacing, valid)

    def restrict(self, prediction: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
        """A prediction of which only what can be scored is not background.

        These are the classes that the split has, and the pixels that count.
        """
        kept = prediction & self._bits if self.labels.overlapping else self._kept[prediction]
        return kept if valid is None else np.where(valid, kept, 0).astype(kept.dtype)

    def restrict_probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities, in which those of classes that the split lacks are the background's."""
        if (self._kept == np.arange(len(self._kept))).all():
            return probabilities
        merge = np.eye(len(self._kept), dtype=probabilities.dtype)[self._kept]
        return probabilities @ merge


def _turn_between(theirs: DatasetInfo, ours: DatasetInfo) -> Turn:
    """How prepared volumes of a set come to lie as those that a network was trained on."""
    letters = [
        "".join(info.orientation[axis] for axis in info.axes or (2, 1, 0))
        for info in (theirs, ours)
        if info.orientation and info.orientation != AS_ACQUIRED
    ]
    if theirs.orientation and not ours.orientation:
        logging.getLogger(__name__).warning(
            "volumes of %s are turned to %s, but how those lay that the network was trained on "
            "(%s) is not known: scores are right only if they lay alike",
            *(theirs.name, theirs.orientation, ours.name),
        )
    return turn_between(*letters) if len(letters) == 2 else Turn((0, 1, 2))


def require_softmax(trained: TrainedModel, what: str) -> None:
    """Raises ValueError where classes may overlap."""
    if trained.activation != "softmax":
        raise ValueError(
            f"{what}: for networks whose classes exclude each other (softmax); those of this one "
            "may overlap (sigmoid)"
        )


def evenly_chosen(cases: Sequence[str], most: int | None) -> list[str]:
    """At most so many cases, evenly spaced; all of them for None."""
    if most is None or most >= len(cases):
        return list(cases)
    if most < 1:
        raise ValueError(f"max_cases={most}: expected at least 1, or None for all")
    return [cases[index] for index in np.linspace(0, len(cases) - 1, most).astype(int)]


@dataclasses.dataclass(frozen=True)
class FullestSlice:
    """The slice of a case with the largest objects.

    Attributes:
      case: its name.
      index: of the slice; None for a picture.
      image: `[height, width, channels]` at the original size, as are `label` and `valid`.
      label: `[height, width]`, to be read as the network's.
      valid: the pixels that count; None for all.
      input: the image as the network takes it, at its size, float32 in [0, 1].
      masks: of each class that is in it, by number, at the network's size.
    """

    case: str
    index: int | None
    image: np.ndarray
    label: np.ndarray
    valid: np.ndarray | None
    input: np.ndarray
    masks: dict[int, np.ndarray]


def fullest_slices(trained: TrainedModel, split: Split, max_cases: int) -> list[FullestSlice]:
    """The fullest slices of some cases, evenly spread over the split.

    Args:
      trained: the network.
      split: its classes are matched as `MatchedCases` does; cases without any of them are left out.
      max_cases: maximum number of cases.

    Raises:
      ValueError: for a network of patches, `max_cases` below 1, or as `MatchedCases` does.
      Preempted: as `interruptible`.
    """
    if trained.config.data.patch_size:
        raise ValueError(
            "the network sees patches of volumes; explanations and interactions are of networks "
            "of slices: train with config.data.patch_size=()"
        )
    cases = MatchedCases(trained, split)
    size = (trained.config.data.image_size,) * 2
    names = evenly_chosen(split.cases, max_cases)
    found = []
    with interruptible(len(names), "slices") as advance:
        for name in names:
            volume = cases.volume(name)
            index = fullest_slice(volume.label)
            image, label = volume.image[index], volume.label[index]
            truth = resize_label(label, size)
            masks = {number: cases.labels.mask(truth, number) for number in cases.scored}
            found.append(
                FullestSlice(
                    case=name,
                    index=index if len(volume.label) > 1 else None,
                    image=image,
                    label=label,
                    valid=None if volume.valid is None else volume.valid[index],
                    input=np.asarray(to_unit_range(jnp.asarray(resize_image(image, size)))),
                    masks={number: mask for number, mask in masks.items() if mask.any()},
                )
            )
            advance(1)
    return [picture for picture in found if picture.masks]


def by_case(names: Sequence[str], measure: Callable[[str], Any], what: str) -> list[Any]:
    """What is found in each case, in the order of the cases, on every process.

    Processes take turns, and each gets what the others found.

    Args:
      names: of the cases.
      measure: from a name to what is found, as JSON takes it.
      what: is measured, for people to see.

    Raises:
      Preempted: as `interruptible`.
    """
    index, count = jax.process_index(), jax.process_count()
    mine = {}
    with interruptible(len(names), what) as advance:
        for first in range(0, len(names), count):
            for name in names[first + index : first + index + 1]:  # the last round may be short
                mine[name] = measure(name)
            advance(count)
    found = {name: of for part in distributed.gather(mine) for name, of in part.items()}
    return [found[name] for name in names]


@contextlib.contextmanager
def interruptible(total: int, what: str, unit: str = "case") -> Iterator[Callable[[int], None]]:
    """Long work that shows its progress, and that SIGTERM or Ctrl-C ends on all processes at once.

    Gives a function to be called with the number of steps just done, by all processes alike.

    Args:
      total: steps.
      what: they do, for people to see.
      unit: of a step.

    Raises:
      Preempted: after SIGTERM or Ctrl-C to any of the processes.
    """
    done = 0
    said = start = time.monotonic()
    terminal = sys.stderr.isatty()
    with (
        distributed.StopSignal(sharding.make_mesh(MeshConfig())) as stop,
        tqdm(
            total=total, unit=unit, desc=what, disable=not (distributed.is_first() and terminal)
        ) as bar,
    ):

        def advance(steps: int) -> None:
            nonlocal done, said
            steps = min(steps, total - done)
            done += steps
            bar.update(steps)
            now = time.monotonic()
            if distributed.is_first() and not terminal and now - said >= SECONDS_BETWEEN_LINES:
                said = now
                line = f"{what}: {done} of {total} {unit}s after {now - start:.0f} s"
                print(line, file=sys.stderr, flush=True)
            stop.check(f"stopped at {unit} {done} of {total} ({what}); nothing is written yet")

        yield advance


def result_header(
    trained: TrainedModel, split: Split, checkpoint: str, dataset: str = ""
) -> dict[str, Any]:
    """What every result begins with: what was measured, and on what.

    Args:
      trained: the network.
      split: that it was measured on.
      checkpoint: what the checkpoint is called.
      dataset: what the data set is called; its own name by default.
    """
    return {
        "dataset": dataset or split.info.name,
        "split": split.name,
        "trained_on": trained.data.name,
        "classes": trained.data.classes,
        "checkpoint": {"name": checkpoint, "step": trained.step},
        **({"members": trained.members} if trained.members else {}),
    }


def write_result(
    workdir: epath.Path,
    kind: str,
    result: Mapping[str, Any],
    pictures: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes `<kind>/<dataset>-<split>.json` in the run's folder, by the first process.

    Pictures go to `<dataset>-<split>-examples.npz` beside it.
    """
    if distributed.is_first():
        name = f"{result['dataset']}-{result['split']}"
        if pictures is not None:
            write_arrays(workdir / kind / f"{name}-examples.npz", pictures)
        write_json(workdir / kind / f"{name}.json", result)
