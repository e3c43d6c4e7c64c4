"""Scores of a trained network on every case of a split, written to the run's folder."""

import math
import pathlib
import sys
import time
from typing import Any

import numpy as np
from tqdm import tqdm

from spectral_jax.data.sources import Split, Volume
from spectral_jax.evaluation.predict import Predictor
from spectral_jax.metrics import score_case, summarise
from spectral_jax.training.run import TrainedModel, write_json

FOLDER = "evaluation"


def evaluate(
    trained: TrainedModel, split: Split, workdir: pathlib.Path, checkpoint: str = "best"
) -> dict[str, Any]:
    """Scores each case at its original size, volumes as volumes, and writes the result.

    `evaluation/<dataset>-<split>.json` holds a row for each case and foreground class, their
    means, and three example cases, whose pictures are in the `-examples.npz` beside it.

    Args:
      trained: the network.
      split: what to score it on; its classes must be those the network knows.
      workdir: the run's folder.
      checkpoint: what the checkpoint is called in the result.

    Returns:
      What is written.

    Raises:
      ValueError: for other classes or channels than the network's.
    """
    start = time.perf_counter()
    classes = trained.data.classes
    for what, ours, theirs in (
        ("classes", classes, split.info.classes),
        ("channels", trained.data.channels, split.info.channels),
    ):
        if ours != theirs:
            raise ValueError(
                f"the network was trained on {what} {ours}, but {split.info.name!r} has {theirs}"
            )

    predictor = Predictor(trained)
    rows = []
    in_millimetres = True
    for name in tqdm(split.cases, unit="case", desc=split.name, disable=not sys.stderr.isatty()):
        volume = split.volume(name)
        in_millimetres &= volume.spacing_mm is not None
        for label, row in enumerate(_score(predictor, volume, len(classes)), start=1):
            rows.append({"case": name, "class": classes[label], **row})
    summary, by_class = summarise(rows)

    name = f"{split.info.name}-{split.name}"
    examples, pictures = _examples(predictor, split, rows)
    result = {
        "dataset": split.info.name,
        "split": split.name,
        "classes": classes,
        "colors": split.info.colors,
        "checkpoint": {"name": checkpoint, "step": trained.step},
        "distance_unit": "mm" if in_millimetres else "px",
        "cases": rows,
        "summary": summary,
        "by_class": by_class,
        "examples": examples,
        "wall_seconds": time.perf_counter() - start,
    }
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"{name}-examples.npz", allow_pickle=False, **pictures)
    write_json(folder / f"{name}.json", _without_nan(result))
    return result


def _score(predictor: Predictor, volume: Volume, num_classes: int) -> list[dict[str, Any]]:
    prediction = predictor.labels(volume.image)
    if len(volume.label) == 1:  # a picture
        spacing = volume.spacing_mm and volume.spacing_mm[1:]
        return score_case(prediction[0], volume.label[0], num_classes, spacing)
    return score_case(prediction, volume.label, num_classes, volume.spacing_mm)


def _examples(
    predictor: Predictor, split: Split, rows: list[dict[str, Any]]
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
        volume = split.volume(case)
        prediction = predictor.labels(volume.image)
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


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: undefined is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
