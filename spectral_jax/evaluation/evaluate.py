"""Scores of a trained network on every case of a split, written to the run's folder."""

import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from spectral_jax.data.datasets import DATASETS, label_map
from spectral_jax.data.geometry import AS_ACQUIRED, Turn, turn_between, turned_sides
from spectral_jax.data.labels import Labels
from spectral_jax.data.pictures import fit_channels
from spectral_jax.data.sources import DatasetInfo, Split, Volume
from spectral_jax.files import write_arrays, write_json
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.metrics import NSD_TOLERANCE, score_mask, summarise
from spectral_jax.training import distributed, sharding
from spectral_jax.training.config import MeshConfig

FOLDER = "evaluation"


def evaluate(
    trained: TrainedModel,
    split: Split,
    workdir: epath.Path,
    checkpoint: str = "best",
    *,
    dataset: str = "",
    threshold: float | None = None,
    nsd_tolerance: float = NSD_TOLERANCE,
) -> dict[str, Any]:
    """Scores each case at its original size, volumes as volumes, and writes the result.

    `evaluation/<dataset>-<split>.json` holds a row for each case and foreground class, with the
    group (patient or video) of the case, their means, and three example cases, whose pictures are
    in the `-examples.npz` beside it.

    Args:
      trained: the network.
      split: what to score it on: of the data set that it was trained on, or of another, whose
        classes are matched by `label_map`.
      workdir: the run's folder.
      checkpoint: what the checkpoint is called in the result.
      dataset: what the data set is called in it; its own name by default.
      threshold: see `Predictor`.
      nsd_tolerance: of the surface Dice, in mm, or pixels where the spacing is not known.

    Returns:
      What is written; of several processes, by the first, which alone has the examples.

    Raises:
      ValueError: if no class of the split is one of the network's, or for colour where the network
        sees grey.
      Preempted: after SIGTERM or Ctrl-C, on all processes at once.
    """
    start = time.perf_counter()
    classes = trained.data.classes
    cases = MatchedCases(trained, split)
    predictor = Predictor(trained, threshold=threshold)
    rows = []
    in_millimetres = True
    # processes take turns; what they found is put together in the order of the cases
    index, count = jax.process_index(), jax.process_count()
    rounds = range(0, len(split.cases), count)
    quiet = not (distributed.is_first() and sys.stderr.isatty())
    with distributed.StopSignal(sharding.make_mesh(MeshConfig())) as stop:
        for first in tqdm(rounds, unit="case", unit_scale=count, desc=split.name, disable=quiet):
            for name in split.cases[first + index : first + index + 1]:  # the last may be short
                volume = cases.volume(name)
                in_millimetres &= volume.spacing_mm is not None
                prediction = cases.restrict(predictor.labels(volume.image), volume.valid)
                for label in cases.scored:
                    scores = _score(volume, prediction, cases.labels, label, nsd_tolerance)
                    of = {"case": name, "group": split.groups[name], "class": classes[label]}
                    rows.append(of | scores)
            stop.check(
                f"stopped at case {first + count} of {len(split.cases)} of the {split.name} split; "
                "its scores are not written yet"
            )
    parts = distributed.gather({"rows": rows, "in_millimetres": in_millimetres})
    place = {name: position for position, name in enumerate(split.cases)}
    rows = sorted((row for part in parts for row in part["rows"]), key=lambda r: place[r["case"]])
    in_millimetres = all(part["in_millimetres"] for part in parts)
    summary, by_class = summarise(rows)

    dataset = dataset or split.info.name
    name = f"{dataset}-{split.name}"
    examples, pictures = _examples(predictor, cases, rows) if distributed.is_first() else ([], {})
    result = {
        "dataset": dataset,
        "split": split.name,
        "trained_on": trained.data.name,
        "classes": classes,
        "colors": trained.data.colors,
        "checkpoint": {"name": checkpoint, "step": trained.step},
        "distance_unit": "mm" if in_millimetres else "px",
        "nsd_tolerance": nsd_tolerance,
        "threshold": predictor.threshold,
        "cases": rows,
        "summary": summary,
        "by_class": by_class,
        "examples": examples,
        "wall_seconds": time.perf_counter() - start,
    }
    if distributed.is_first():
        folder = workdir / FOLDER
        folder.mkdir(exist_ok=True)
        write_arrays(folder / f"{name}-examples.npz", pictures)
        write_json(folder / f"{name}.json", result)
    return result


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
    return turn_between(*letters) if len(letters) == 2 else Turn((0, 1, 2))


def require_softmax(trained: TrainedModel, what: str) -> None:
    """Raises ValueError where classes may overlap."""
    if trained.activation != "softmax":
        raise ValueError(
            f"{what}: for networks whose classes exclude each other (softmax); those of this one "
            "may overlap (sigmoid)"
        )


def spread(cases: Sequence[str], most: int | None) -> list[str]:
    """At most so many cases, evenly spaced; all of them for None."""
    if most is None or most >= len(cases):
        return list(cases)
    if most < 1:
        raise ValueError(f"max_cases={most}: expected at least 1, or None for all")
    return [cases[index] for index in np.linspace(0, len(cases) - 1, most).astype(int)]


def _score(
    volume: Volume, prediction: np.ndarray, labels: Labels, number: int, nsd_tolerance: float
) -> dict[str, Any]:
    found, truth = (labels.mask(of, number) for of in (prediction, volume.label))
    confused = math.nan  # where a voxel can be of both, it is not taken for the other
    if not labels.overlapping:
        confused = int((truth & ~found & (prediction > 0)).sum())
    spacing: Sequence[float] | None = volume.spacing_mm
    if len(truth) == 1:  # a picture
        found, truth = found[0], truth[0]
        spacing = spacing and spacing[1:]
    scores = score_mask(found, truth, spacing, nsd_tolerance=nsd_tolerance)
    return scores | {"confused_voxels": confused}


def _examples(
    predictor: Predictor, cases: MatchedCases, rows: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The best, the median and the worst case by mean Dice, at their fullest slice."""
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case"], []).append(row["dice"])
    means = {case: np.nanmean(of) for case, of in dice.items() if not np.isnan(of).all()}
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    examples, pictures = [], {}
    for rank, position in (("best", 0), ("median", len(ranked) // 2), ("worst", -1)):
        if not ranked:
            break
        case = ranked[position]
        volume = cases.volume(case)
        prediction = cases.restrict(predictor.labels(volume.image), volume.valid)
        area = ((volume.label > 0) | (prediction > 0)).sum((1, 2))
        index = int(area.argmax())
        image = volume.image[index]
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        pictures[f"{rank}_image"] = image.squeeze()
        pictures[f"{rank}_label"] = cases.labels.topmost(volume.label[index])
        pictures[f"{rank}_prediction"] = cases.labels.topmost(prediction[index])
        examples.append(
            {
                "rank": rank,
                "case": case,
                "slice": index if len(volume.label) > 1 else None,
                "dice": float(means[case]),
                "key": rank,
            }
        )
    return examples, pictures


def write_result(workdir: epath.Path, kind: str, result: dict[str, Any]) -> None:
    """Writes `<kind>/<dataset>-<split>.json` in the run's folder, by the first process."""
    if distributed.is_first():
        folder = workdir / kind
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{result['dataset']}-{result['split']}.json", result)
