"""Where a network errs: objects missed, false negatives, confusion, hard shapes, unusual cases.

The functions of one case are pure functions of arrays with the axes `[depth, height, width]`, a
picture has depth 1. They count; counts of cases, seeds and processes add up, and rates come last.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int
from scipy import ndimage

from spectral_jax.data.sources import Split, Volume
from spectral_jax.evaluation.cases import (
    MatchedCases,
    by_case,
    require_softmax,
    result_header,
    write_result,
)
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.metrics.overlap import confusion_matrix
from spectral_jax.metrics.ranking import rank_correlation

FOLDER = "analysis"
MISSED_RECALL = 0.1
"""An object is missed if a smaller share of it than this was given to its class."""
DISTANCE_EDGES_PX = (1, 2, 4, 8)
"""Between the bins of distance to the boundary; each bin holds its upper edge."""
RING_PX = 3
"""Width of the surroundings that an object's contrast is taken against."""
PROPERTIES = ("size_px", "elongation", "mean_intensity", "contrast")


def analyse_errors(
    trained: TrainedModel,
    split: Split,
    workdir: epath.Path,
    *,
    reference_split: Split | None = None,
    checkpoint: str = "best",
    dataset: str = "",
) -> dict[str, Any]:
    """Looks into the errors on each case of a split, and writes what it finds.

    `analysis/<dataset>-<split>.json` holds, by class: the objects of the truth with those missed
    by size; false negatives by distance to the boundary and by what they were taken for; the
    confusion matrix; Dice against size, shape and intensity; and with a reference, error against
    the distance from the training images.

    Args:
      trained: the network.
      split: what to look at, of its own data set or of another whose classes match.
      workdir: the run's folder.
      reference_split: the training split, to measure distances from; its images are read, not
        predicted.
      checkpoint: what the checkpoint is called in the result.
      dataset: what the data set is called in it; its own name by default.

    Returns:
      What is written.

    Raises:
      ValueError: where `MatchedCases` does.
      Preempted: as `evaluate`.
    """
    start = time.perf_counter()
    require_softmax(trained, "analysis of errors")
    classes = trained.data.classes
    cases = MatchedCases(trained, split)
    predictor = Predictor(trained)

    def look(name: str) -> dict[str, Any]:
        objects, properties, near = [], [], []
        volume = cases.volume(name)
        labels = predictor.labels(volume.image, volume.spacing_mm)
        prediction = cases.restrict(labels, volume.valid)
        counted = ... if volume.valid is None else volume.valid
        confusion = confusion_matrix(prediction[counted], volume.label[counted], len(classes))
        for label in cases.scored:
            of_class = {"case": name, "class": classes[label]}
            truth, found = volume.label == label, prediction == label
            objects += [of_class | row for row in find_objects(found, truth, volume.spacing_mm)]
            near.append(misses_by_distance(found, truth).tolist())
            if truth.any():
                properties.append(of_class | class_properties(volume, found, truth))
        return {
            "objects": objects,
            "properties": properties,
            "appearance": describe_image(volume.image).tolist(),
            "confusion": confusion.tolist(),
            "near": near,
        }

    found = by_case(split.cases, look, f"{split.name} split")
    objects = [row for of_case in found for row in of_case["objects"]]
    properties = [row for of_case in found for row in of_case["properties"]]
    confusion = np.sum([of_case["confusion"] for of_case in found], axis=0)
    near = np.sum([of_case["near"] for of_case in found], axis=0)

    scored = [classes[label] for label in cases.scored]
    result: dict[str, Any] = {
        **result_header(trained, split, checkpoint, dataset),
        "scored": scored,
        "objects": objects,
        "missed_object_rate": {
            name: summarise_objects([row for row in objects if row["class"] == name])
            for name in scored
        },
        "false_negatives": {
            classes[label]: summarise_misses(label, confusion, of_class, classes)
            for label, of_class in zip(cases.scored, near, strict=True)
        },
        "confusion": summarise_confusion(confusion, cases.scored),
        "intra_class": {
            "rows": properties,
            "by_class": {
                name: summarise_properties([row for row in properties if row["class"] == name])
                for name in scored
            },
        },
        "distance_from_training": None,
    }
    if reference_split is not None:
        reference = MatchedCases(trained, reference_split)
        training = by_case(
            reference_split.cases,
            lambda name: describe_image(reference.volume(name).image).tolist(),
            f"{reference_split.name} split",
        )
        appearance = {
            name: of_case["appearance"] for name, of_case in zip(split.cases, found, strict=True)
        }
        result["distance_from_training"] = {
            "reference": f"{reference_split.info.name}-{reference_split.name}",
            **compare_distances(appearance, training, properties),
        }
    result["wall_seconds"] = time.perf_counter() - start
    write_result(workdir, FOLDER, result)
    return result


def find_objects(
    found: Bool[np.ndarray, "depth height width"],
    truth: Bool[np.ndarray, "depth height width"],
    spacing_mm: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Each connected component of the truth, its size, and how much of it was found.

    Voxels that share a face are connected. A false positive beside an object is not held against
    it: an object is missed if its recall is below `MISSED_RECALL`.

    Args:
      found: where the class was predicted.
      truth: where it is.
      spacing_mm: of a voxel.

    Returns:
      A row for each: `size_px` in voxels, `size_mm3` (None without spacing), `recall`, `missed`.

    >>> find_objects(np.array([[[1, 0, 0]]]) > 0, np.array([[[1, 1, 0]]]) > 0)
    [{'size_px': 2, 'size_mm3': None, 'recall': 0.5, 'missed': False}]
    """
    labels, count = ndimage.label(truth)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    hits = np.bincount(labels[found], minlength=count + 1)[1:]
    voxel = float(np.prod(spacing_mm)) if spacing_mm is not None else None
    return [
        {
            "size_px": int(size),
            "size_mm3": None if voxel is None else size * voxel,
            "recall": float(hit / size),
            "missed": bool(hit < MISSED_RECALL * size),
        }
        for size, hit in zip(sizes.tolist(), hits.tolist(), strict=True)
    ]


def misses_by_distance(
    found: Bool[np.ndarray, "depth height width"], truth: Bool[np.ndarray, "depth height width"]
) -> Int[np.ndarray, "bins 2"]:
    """True and missed voxels in bins of distance from inside to the truth's boundary.

    The distance is within the slice, since slices may lie far apart, from the voxel's centre to
    the boundary, half a pixel before the nearest centre outside.

    Returns:
      A row for each bin, between `DISTANCE_EDGES_PX`: true voxels, and those of them missed.
    """
    depths = distance_in_slice(truth)[truth] - 0.5
    bins = np.digitize(depths, DISTANCE_EDGES_PX, right=True)
    number = len(DISTANCE_EDGES_PX) + 1
    missed = bins[~found[truth]]
    return np.stack([np.bincount(which, minlength=number) for which in (bins, missed)], axis=-1)


def distance_in_slice(
    inside: Bool[np.ndarray, "depth height width"],
) -> Float[np.ndarray, "depth height width"]:
    """Distance in px to the nearest voxel of the same slice that is not inside.

    Infinite in a slice that is inside altogether.
    """
    return np.stack(
        [
            np.full(of_slice.shape, np.inf)
            if of_slice.all()
            else ndimage.distance_transform_edt(of_slice)
            for of_slice in inside
        ]
    )


def class_properties(
    volume: Volume,
    found: Bool[np.ndarray, "depth height width"],
    truth: Bool[np.ndarray, "depth height width"],
) -> dict[str, Any]:
    """Dice of a class in one case, with the size, shape and intensity of its truth.

    Args:
      volume: the case; its image is taken as grey, from 0 to 1.
      found: where the class was predicted.
      truth: where it is; somewhere.

    Returns:
      `dice`; `size_px` in voxels; `elongation`, the ratio of the two largest standard deviations
      along the principal axes (1 is round; in mm where the spacing is known); `mean_intensity`
      inside; `contrast`, that minus the mean of the `RING_PX` around it in each slice (NaN where
      nothing is around).
    """
    spacing = np.asarray(volume.spacing_mm or (1.0, 1.0, 1.0))
    at = np.argwhere(truth) * spacing
    offset = at - at.mean(axis=0)
    # a voxel has an extent itself: the variance of a uniform distribution
    variances = np.linalg.eigvalsh(offset.T @ offset / len(at) + np.diag(spacing**2 / 12))
    grey = to_grey(volume.image)
    ring = (distance_in_slice(~truth) <= RING_PX) & ~truth
    inside = float(grey[truth].mean())
    return {
        "dice": float(2 * (found & truth).sum() / (found.sum() + truth.sum())),
        "size_px": int(truth.sum()),
        "elongation": float(np.sqrt(variances[-1] / variances[-2])),
        "mean_intensity": inside,
        "contrast": inside - float(grey[ring].mean()) if ring.any() else np.nan,
    }


def to_grey(
    image: Int[np.ndarray, "depth height width channels"],
) -> Float[np.ndarray, "depth height width"]:
    """The mean of the channels of a uint8 or uint16 image, from 0 to 1."""
    return image.mean(axis=-1) / np.iinfo(image.dtype).max


def describe_image(
    image: Int[np.ndarray, "depth height width channels"],
) -> Float[np.ndarray, " features"]:
    """What a case looks like: the nine deciles of its grey values, and its mean in-slice gradient.

    Brightness, contrast and sharpness are what scanners and hospitals differ in. No network and no
    label is asked, so that all arms of a study are plotted over the same distances.
    """
    grey = to_grey(image)
    deciles = np.quantile(grey, np.linspace(0.1, 0.9, 9))
    gradient = np.hypot(*np.gradient(grey, axis=(1, 2))).mean()
    return np.append(deciles, gradient)


def distances_from(
    described: Float[np.ndarray, "cases features"], training: Float[np.ndarray, "others features"]
) -> Float[np.ndarray, " cases"]:
    """Standardised Euclidean distance of each case from the mean of the training cases.

    The root of the mean over features of ((feature - mean) / deviation)^2: about 1 for a case like
    those. The deviation is of the training cases, and at least 0.001 of the intensity range.
    """
    deviation = np.maximum(training.std(axis=0), 1e-3)
    return np.sqrt((((described - training.mean(axis=0)) / deviation) ** 2).mean(axis=1))


def summarise_objects(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Objects, those missed and their share: of all, and by thirds of size."""

    def rate(of: Sequence[dict[str, Any]]) -> dict[str, Any]:
        missed = sum(row["missed"] for row in of)
        return {
            "objects": len(of),
            "missed": missed,
            "rate": missed / len(of) if of else np.nan,
        }

    thirds = [
        {"low_px": of[0]["size_px"], "high_px": of[-1]["size_px"], **rate(of)}
        for of in _thirds(rows, "size_px")
    ]
    return {**rate(rows), "by_size": thirds}


def summarise_misses(
    label: int,
    confusion: Int[np.ndarray, "classes classes"],
    near: Int[np.ndarray, "bins 2"],
    classes: Sequence[str],
) -> dict[str, Any]:
    """True and missed voxels of a class, what they were taken for, and how far inside they lie."""
    true, found = int(confusion[label].sum()), int(confusion[label, label])
    edges = [0, *DISTANCE_EDGES_PX, None]
    return {
        "true_voxels": true,
        "missed_voxels": true - found,
        "missed_share": (true - found) / true if true else np.nan,
        "went_to": {
            name: int(confusion[label, other])
            for other, name in enumerate(classes)
            if other != label
        },
        "by_boundary_distance": [
            {"low_px": low, "high_px": high, "true_voxels": int(voxels), "missed_voxels": int(lost)}
            for low, high, (voxels, lost) in zip(edges[:-1], edges[1:], near, strict=True)
        ],
    }


def summarise_confusion(
    confusion: Int[np.ndarray, "classes classes"], scored: Sequence[int]
) -> dict[str, Any]:
    """The matrix, and the share of foreground that was given to another foreground class.

    >>> matrix = np.array([[9, 0, 0], [2, 6, 2], [0, 0, 10]])
    >>> summarise_confusion(matrix, [1, 2])["inter_class_share"]
    0.1
    """
    among = confusion[np.ix_(scored, scored)]
    swapped, foreground = int(among.sum() - np.trace(among)), int(confusion[scored].sum())
    return {
        "matrix": confusion.tolist(),
        "inter_class_voxels": swapped,
        "inter_class_share": swapped / foreground if foreground else np.nan,
    }


def summarise_properties(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Dice of one class against each of the `PROPERTIES`: rank correlation, and mean by thirds."""
    return {
        name: {
            **rank_correlation([row[name] for row in rows], [row["dice"] for row in rows]),
            "by_third": [
                {
                    "low": of[0][name],
                    "high": of[-1][name],
                    "dice": float(np.mean([row["dice"] for row in of])),
                    "cases": len(of),
                }
                for of in _thirds([row for row in rows if np.isfinite(row[name])], name)
            ],
        }
        for name in PROPERTIES
    }


def compare_distances(
    appearance: dict[str, list[float]], training: list[list[float]], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Each case's distance from the training images, and its rank correlation with the error.

    Args:
      appearance: `describe_image` of each case.
      training: of each training case.
      rows: with `case` and `dice`; the error of a case is 1 minus its mean Dice over the classes
        that it has.

    Returns:
      A row for each case, the correlation, and the distances of the training cases themselves.
    """
    distances = distances_from(np.array(list(appearance.values())), np.array(training))
    found: list[dict[str, Any]] = []
    for name, distance in zip(appearance, distances, strict=True):
        dice = [row["dice"] for row in rows if row["case"] == name]
        error = 1 - float(np.mean(dice)) if dice else np.nan
        found.append({"case": name, "distance": float(distance), "error": error})
    own = distances_from(np.array(training), np.array(training))
    low, median, high = np.quantile(own, [0.05, 0.5, 0.95]).tolist()
    return {
        "features": "deciles of grey values and mean gradient, standardised",
        "training_cases": len(training),
        "training_distances": {"5%": low, "50%": median, "95%": high},
        "cases": found,
        **rank_correlation([row["distance"] for row in found], [row["error"] for row in found]),
    }


def _thirds(rows: list[dict[str, Any]], key: str) -> Iterator[list[dict[str, Any]]]:
    """The third of rows with the smallest, middle and largest values, where not empty."""
    ranked = sorted(rows, key=lambda row: row[key])
    cuts = [round(len(ranked) * third / 3) for third in range(4)]
    for low, high in itertools.pairwise(cuts):
        if high > low:
            yield ranked[low:high]
