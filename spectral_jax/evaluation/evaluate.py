"""Scores of a trained network on every case of a split, written to the run's folder."""

import dataclasses
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
from spectral_jax.data.pictures import fit_channels
from spectral_jax.data.sources import DatasetInfo, Split, Volume
from spectral_jax.evaluation.predict import Predictor
from spectral_jax.files import write_arrays, write_json
from spectral_jax.metrics import score_case, summarise
from spectral_jax.training import distributed, sharding
from spectral_jax.training.config import MeshConfig
from spectral_jax.training.run import TrainedModel

FOLDER = "evaluation"


def evaluate(
    trained: TrainedModel,
    split: Split,
    workdir: epath.Path,
    checkpoint: str = "best",
    *,
    dataset: str = "",
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
    predictor = Predictor(trained)
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
                prediction = cases.restrict(predictor.labels(volume.image))
                scores = _score(volume, prediction, len(classes))
                for label in cases.scored:
                    of = {"case": name, "group": split.groups[name], "class": classes[label]}
                    rows.append(of | scores[label - 1])
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


class MatchedCases:
    """Cases of a split in the terms of a network: its channels and its classes.

    Attributes:
      scored: numbers of the network's classes that the split has too.
    """

    def __init__(self, trained: TrainedModel, split: Split):
        """Matches classes by name, or as the data set's entry for its partner says."""
        ours, theirs = trained.data, split.info
        partner = DATASETS[ours.name].partner(theirs.name, ours.classes)
        self._table, names = label_map(partner, theirs.classes, ours.classes)
        self.scored = [ours.classes.index(name) for name in names]
        self._kept = np.zeros(len(ours.classes), np.uint8)
        self._kept[self.scored] = self.scored
        self._channels = ours.channels
        self._split = split
        self._turn = _turn_between(theirs, ours)

    def volume(self, name: str) -> Volume:
        """The case, turned as in training, with labels that mean the network's classes.

        Raises:
          DataError: for colour where the network sees grey.
        """
        volume = self._split.volume(name)
        spacing = volume.spacing_mm and turned_sides(volume.spacing_mm, self._turn)
        return dataclasses.replace(
            volume,
            image=fit_channels(
                self._turn.apply(volume.image), self._channels, f"{self._split.info.name}, {name}"
            ),
            label=self._table[self._turn.apply(volume.label)],
            spacing_mm=spacing,
        )

    def restrict(self, prediction: np.ndarray) -> np.ndarray:
        """A prediction in which classes that the split does not have are background."""
        return self._kept[prediction]

    def restrict_probabilities(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities in which those of such classes are added to the background's."""
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


def spread(cases: Sequence[str], most: int | None) -> list[str]:
    """At most so many cases, evenly spaced; all of them for None."""
    if most is None or most >= len(cases):
        return list(cases)
    if most < 1:
        raise ValueError(f"max_cases={most}: expected at least 1, or None for all")
    return [cases[index] for index in np.linspace(0, len(cases) - 1, most).astype(int)]


def _score(volume: Volume, prediction: np.ndarray, num_classes: int) -> list[dict[str, Any]]:
    if len(volume.label) == 1:  # a picture
        spacing = volume.spacing_mm and volume.spacing_mm[1:]
        return score_case(prediction[0], volume.label[0], num_classes, spacing)
    return score_case(prediction, volume.label, num_classes, volume.spacing_mm)


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
        prediction = cases.restrict(predictor.labels(volume.image))
        area = ((volume.label > 0) | (prediction > 0)).sum((1, 2))
        index = int(area.argmax())
        image = volume.image[index]
        if image.dtype == np.uint16:
            image = (image >> 8).astype(np.uint8)
        pictures[f"{rank}_image"] = image.squeeze()
        pictures[f"{rank}_label"] = volume.label[index]
        pictures[f"{rank}_prediction"] = prediction[index]
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
