"""Scores of a trained network on corrupted images, written to the run's folder."""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt

from spectral_jax.data.corruptions import LEVELS, corrupt, for_modality, strength
from spectral_jax.data.sources import Split, resize_image
from spectral_jax.data.volumes import Spacing
from spectral_jax.evaluation.cases import (
    MatchedCases,
    by_case,
    evenly_chosen,
    result_header,
    write_result,
)
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.metrics import overlap, summarise

FOLDER = "robustness"
METRICS = ("dice", "recall")
CLEAN = ("clean", 0)


def measure_robustness(
    trained: TrainedModel,
    split: Split,
    workdir: epath.Path,
    *,
    corruptions: Sequence[str] | None = None,
    severities: Sequence[int] = LEVELS,
    max_cases: int | None = None,
    checkpoint: str = "best",
    dataset: str = "",
) -> dict[str, Any]:
    """Scores each case clean and through each corruption, and writes the result.

    A network of slices has its images corrupted at the size that it sees, so that a severity means
    the same for data sets of all sizes: noise on a large picture would vanish as it shrinks. Scores
    are taken at the original size, and the clean ones are those of `evaluate`.

    `robustness/<dataset>-<split>.json` holds Dice and recall (the mean over classes of the mean
    over cases), with a row for each case and class: `clean`, and for each of `corruptions` a list
    by severity; `mean_corrupted_dice`, over severities, then corruptions; and `relative_drop`,
    (clean - corrupted) / clean.

    Args:
      trained: the network.
      split: what to score it on, as for `evaluate`.
      workdir: the run's folder.
      corruptions: names; those of the split's modality without it.
      severities: which, from 1 to 5.
      max_cases: maximum number of cases, evenly spaced; None for all.
      checkpoint: what the checkpoint is called in the result.
      dataset: what the data set is called in it; its own name by default.

    Returns:
      What is written.

    Raises:
      ValueError: for an unknown corruption or severity, `max_cases` below 1, or as `evaluate`.
      Preempted: as `evaluate`.
    """
    start = time.perf_counter()
    classes, modality = trained.data.classes, split.info.modality
    names = for_modality(modality) if corruptions is None else tuple(corruptions)
    conditions = [(name, severity) for name in names for severity in severities]
    for name, severity in conditions:
        strength(name, severity, modality)  # raises before anything long begins
    cases = MatchedCases(trained, split)
    predictor = Predictor(trained)
    chosen = evenly_chosen(split.cases, max_cases)
    size = None if trained.config.data.patch_size else (trained.config.data.image_size,) * 2

    def score(name: str) -> list[dict[str, Any]]:
        rows = []
        volume = cases.volume(name)
        image = volume.image if size is None else _resized(volume.image, size)
        images = (
            image
            if condition == CLEAN
            else corrupt(image, *condition, modality=modality, case=name)
            for condition in [CLEAN, *conditions]
        )
        predictions = _labels(predictor, images, volume.label.shape, volume.spacing_mm)
        for (corruption, severity), labels in zip([CLEAN, *conditions], predictions, strict=True):
            prediction = cases.restrict(labels, volume.valid)
            for label in cases.scored:
                counts = overlap.mask_counts(
                    *(cases.labels.mask(of, label) for of in (prediction, volume.label))
                )
                rows.append(
                    {
                        "condition": [corruption, severity],
                        "case": name,
                        "class": classes[label],
                        "dice": overlap.dice(counts).item(),
                        "recall": overlap.recall(counts).item(),
                    }
                )
        return rows

    found = by_case(chosen, score, "robustness")
    by_condition: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in itertools.chain.from_iterable(found):
        by_condition.setdefault(tuple(row.pop("condition")), []).append(row)

    clean = _summary(by_condition[CLEAN])
    corrupted = {
        name: [
            {"severity": severity, **_summary(by_condition[name, severity])}
            for severity in severities
        ]
        for name in names
    }
    mean = float(np.mean([[level["dice"] for level in of_name] for of_name in corrupted.values()]))
    result = {
        **result_header(trained, split, checkpoint, dataset),
        "clean": clean,
        "corruptions": corrupted,
        "mean_corrupted_dice": mean,
        "relative_drop": (clean["dice"] - mean) / clean["dice"] if clean["dice"] else float("nan"),
        "max_cases": max_cases,
        "wall_seconds": time.perf_counter() - start,
    }
    write_result(workdir, FOLDER, result)
    return result


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([resize_image(of_slice, size) for of_slice in image])


def _labels(
    predictor: Predictor,
    images: Iterator[np.ndarray],
    shape: tuple[int, int, int],
    spacing_mm: Spacing | None,
) -> Iterator[UInt[np.ndarray, "depth height width"]]:
    """The labels of each of some images of one case, at its original shape."""
    slices = predictor.slices(images, itertools.repeat(spacing_mm))
    while of_image := list(itertools.islice(slices, shape[0])):
        labels = [predictor.decide(resize_image(p, shape[1:3])) for p in of_image]
        yield predictor.finish(np.stack(labels))


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary, _ = summarise(rows, METRICS)
    return {metric: summary[metric]["mean"] for metric in METRICS} | {"cases": rows}
