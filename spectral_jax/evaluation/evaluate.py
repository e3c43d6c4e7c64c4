"""Scores of a trained network on every case of a split, written to the run's folder."""

import base64
import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from spectral_jax.data.labels import Labels, fullest_slice
from spectral_jax.data.pictures import in_8_bits, to_show
from spectral_jax.data.sources import Split, Volume, resize_image, resize_label
from spectral_jax.evaluation.cases import MatchedCases, by_case, result_header, write_result
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.metrics import NSD_TOLERANCE, score_mask, summarise
from spectral_jax.training import distributed

FOLDER = "evaluation"
SMALL_PIXELS = 256  # of the longer side of the pictures that every case has
MOST_PICTURES = 100  # of them, of the worst cases


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
    group (patient or video) of the case, their means, and examples, whose pictures are in the
    `-examples.npz` beside it: the best, the median and the worst case, and, smaller, the hundred
    worst ones.

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

    def score(name: str) -> dict[str, Any]:
        volume = cases.volume(name)
        labels = predictor.labels(volume.image, volume.spacing_mm)
        prediction = cases.restrict(labels, volume.valid)
        rows = [
            {"case": name, "group": split.groups[name], "class": classes[label]}
            | _score(volume, prediction, cases.labels, label, nsd_tolerance)
            for label in cases.scored
        ]
        return {
            "rows": rows,
            "in_millimetres": volume.spacing_mm is not None,
            "picture": _small_picture(volume, prediction, cases.labels),
        }

    found = by_case(split.cases, score, f"{split.name} split")
    rows = [row for of_case in found for row in of_case["rows"]]
    in_millimetres = all(of_case["in_millimetres"] for of_case in found)
    summary, by_class = summarise(rows)
    examples: list[dict[str, Any]] = []
    pictures: dict[str, np.ndarray] = {}
    if distributed.is_first():
        examples, pictures = _examples(predictor, cases, rows)
        by_name = dict(zip(split.cases, (of_case["picture"] for of_case in found), strict=True))
        _add_worst(examples, pictures, by_name, rows)
    result = {
        **result_header(trained, split, checkpoint, dataset),
        "colors": trained.data.colors,
        "distance_unit": "mm" if in_millimetres else "px",
        "nsd_tolerance": nsd_tolerance,
        "threshold": predictor.threshold,
        "largest_component": trained.largest_component,
        "cases": rows,
        "summary": summary,
        "by_class": by_class,
        "examples": examples,
        "wall_seconds": time.perf_counter() - start,
    }
    write_result(workdir, FOLDER, result, pictures)
    return result


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
    means = _mean_dice(rows)
    ranked = [*means][::-1]
    examples, pictures = [], {}
    for rank, position in (("best", 0), ("median", len(ranked) // 2), ("worst", -1)):
        if not ranked:
            break
        case = ranked[position]
        volume = cases.volume(case)
        labels = predictor.labels(volume.image, volume.spacing_mm)
        prediction = cases.restrict(labels, volume.valid)
        index = fullest_slice(volume.label, prediction)
        pictures[f"{rank}_image"] = to_show(volume.image[index])
        pictures[f"{rank}_label"] = cases.labels.topmost(volume.label[index])
        pictures[f"{rank}_prediction"] = cases.labels.topmost(prediction[index])
        examples.append(
            {
                "rank": rank,
                "case": case,
                "slice": index if len(volume.label) > 1 else None,
                "dice": means[case],
                "key": rank,
            }
        )
    return examples, pictures


def _mean_dice(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The mean Dice of each case that has one, the worst first."""
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["case"], []).append(row["dice"])
    means = {case: float(np.nanmean(of)) for case, of in dice.items() if not np.isnan(of).all()}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _small_picture(volume: Volume, prediction: np.ndarray, labels: Labels) -> dict[str, Any]:
    """The fullest slice of a case, no larger than a page needs, as JSON takes it."""
    index = fullest_slice(volume.label, prediction)
    image = in_8_bits(volume.image[index])
    scale = min(1, SMALL_PIXELS / max(image.shape[:2]))
    height, width = (max(1, round(scale * side)) for side in image.shape[:2])
    size = height, width
    arrays = {
        "image": to_show(resize_image(image, size)),
        "label": resize_label(labels.topmost(volume.label[index]), size),
        "prediction": resize_label(labels.topmost(prediction[index]), size),
    }
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return {
        "slice": index if len(volume.label) > 1 else None,
        "arrays": base64.b64encode(file.getvalue()).decode(),
    }


def _add_worst(
    examples: list[dict[str, Any]],
    pictures: dict[str, np.ndarray],
    by_name: Mapping[str, dict[str, Any]],
    rows: Sequence[dict[str, Any]],
) -> None:
    """Adds the small pictures of the worst cases that are no examples yet."""
    shown = {example["case"] for example in examples}
    others = [item for item in _mean_dice(rows).items() if item[0] not in shown]
    for number, (case, dice) in enumerate(others[:MOST_PICTURES]):
        small = by_name[case]
        with np.load(io.BytesIO(base64.b64decode(small["arrays"]))) as arrays:
            pictures |= {f"{number}_{part}": arrays[part] for part in arrays}
        of = {"rank": None, "case": case, "slice": small["slice"], "dice": dice, "key": str(number)}
        examples.append(of)
