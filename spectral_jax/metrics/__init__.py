"""Metrics of segmentation: per case and class first, then the mean over cases, then over classes.

Every number comes with its count. What is undefined is NaN, counted, and never 0 or 1; the
`*_transunet` metrics alone follow the conventions of TransUNet's published tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer

from spectral_jax.metrics import overlap, surface

METRICS = (
    "dice",
    "iou",
    "precision",
    "recall",
    "hd95",
    "assd",
    "nsd",
    "dice_transunet",
    "hd95_transunet",
)


NSD_TOLERANCE = 2.0  # mm, or voxels where the spacing is not known


def score_case(
    prediction: Integer[np.ndarray, "*spatial"],
    truth: Integer[np.ndarray, "*spatial"],
    num_classes: int,
    spacing: Sequence[float] | None = None,
    *,
    ignore_label: int | None = None,
    nsd_tolerance: float = NSD_TOLERANCE,
) -> list[dict[str, float]]:
    """Scores one case, a picture or a volume, against its truth.

    Args:
      prediction: integer labels with two or three axes; 0 is the background.
      truth: integer labels of the same shape.
      num_classes: number of classes, background included.
      spacing: size of a voxel along each axis in mm; distances are in voxels without it.
      ignore_label: value of the truth that marks voxels that do not count; truth and prediction
        are background there.
      nsd_tolerance: of the surface Dice, in the unit of the distances.

    Returns:
      One dictionary for each of the classes 1 to `num_classes - 1`, with the `METRICS`,
      `true_voxels`, `predicted_voxels`, and `confused_voxels`, given to another foreground class.

    Raises:
      ValueError: for arrays of different shapes, labels out of range, or an unfit spacing.

    >>> truth = np.zeros((8, 8), int)
    >>> truth[2:6, 2:6] = 1
    >>> row, = score_case(np.roll(truth, 1, axis=0), truth, num_classes=2)
    >>> row["dice"], row["hd95"]
    (0.75, 1.0)
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if ignore_label is not None:
        overlap.check_shapes(prediction, truth)
        counts = truth != ignore_label
        prediction, truth = prediction * counts, truth * counts
    overlap.check_labels(prediction, truth, num_classes)
    rows = []
    for label in range(1, num_classes):
        found, true = prediction == label, truth == label
        of_class: dict[str, float] = score_mask(found, true, spacing, nsd_tolerance=nsd_tolerance)
        confused = int((true & ~found & (prediction > 0)).sum())
        rows.append(of_class | {"confused_voxels": confused})
    return rows


def score_mask(
    prediction: Bool[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    spacing: Sequence[float] | None = None,
    *,
    nsd_tolerance: float = NSD_TOLERANCE,
) -> dict[str, float]:
    """Scores one class of one case, which other classes may overlap.

    Args:
      prediction: boolean mask with two or three axes.
      truth: boolean mask of the same shape. Both are false where voxels do not count.
      spacing: as for `score_case`.
      nsd_tolerance: as for `score_case`.

    Returns:
      The `METRICS`, `true_voxels` and `predicted_voxels`.

    Raises:
      ValueError: for masks of different shapes, or an unfit spacing.
    """
    counts = overlap.mask_counts(prediction, truth)
    predicted_surface = surface.surface_voxels(prediction)
    true_surface = surface.surface_voxels(truth)
    in_voxels = surface.distances_between(predicted_surface, true_surface)
    distances = in_voxels
    if spacing is not None:
        distances = surface.distances_between(predicted_surface, true_surface, spacing)
    return {
        "dice": overlap.dice(counts).item(),
        "iou": overlap.iou(counts).item(),
        "precision": overlap.precision(counts).item(),
        "recall": overlap.recall(counts).item(),
        "hd95": surface.hd95(distances),
        "assd": surface.assd(distances),
        "nsd": surface.nsd(distances, nsd_tolerance),
        "dice_transunet": overlap.dice_transunet(counts).item(),
        "hd95_transunet": surface.hd95_transunet(in_voxels),
        "true_voxels": counts.true_voxels.item(),
        "predicted_voxels": counts.predicted_voxels.item(),
    }


def summarise(
    rows: Iterable[Mapping[str, Any]],
    metrics: Sequence[str] = METRICS,
) -> tuple[dict[str, dict[str, float]], dict[Any, dict[str, dict[str, float]]]]:
    """Averages the rows of `score_case` over cases for each class, then over classes.

    Args:
      rows: dictionaries with `class` and the `metrics`, one for each case and class; undefined
        is NaN or None.
      metrics: which to average.

    Returns:
      `(summary, by_class)`. `summary[metric]` has `mean`, over the classes that have one, and
      `count` and `undefined`, the numbers of values over all classes. `by_class[class][metric]`
      has `mean` and `sd` (with n - 1) over the cases where it is defined, `count`, `undefined`.
      A mean of nothing and a deviation of one value are NaN.

    >>> scores = dict.fromkeys(METRICS, 0.5)
    >>> rows = [{"class": "cup"} | scores, {"class": "cup"} | scores | {"dice": None}]
    >>> summarise(rows)[0]["dice"]
    {'mean': 0.5, 'count': 1, 'undefined': 1}
    """
    rows = list(rows)
    by_class: dict[Any, dict[str, dict[str, float]]] = {}
    for name in dict.fromkeys(row["class"] for row in rows):
        of_class = [row for row in rows if row["class"] == name]
        by_class[name] = {
            metric: _statistics([row[metric] for row in of_class]) for metric in metrics
        }
    summary = {}
    for metric in metrics:
        classes = [statistics[metric] for statistics in by_class.values()]
        summary[metric] = {
            "mean": _statistics([statistics["mean"] for statistics in classes])["mean"],
            "count": sum(statistics["count"] for statistics in classes),
            "undefined": sum(statistics["undefined"] for statistics in classes),
        }
    return summary, by_class


def _statistics(values: Sequence[float | None]) -> dict[str, float]:
    array = np.array(values, float)
    defined = array[~np.isnan(array)]
    return {
        "mean": float(defined.mean()) if defined.size else float("nan"),
        "sd": float(defined.std(ddof=1)) if defined.size > 1 else float("nan"),
        "count": defined.size,
        "undefined": array.size - defined.size,
    }


__all__ = ["METRICS", "NSD_TOLERANCE", "score_case", "score_mask", "summarise"]
