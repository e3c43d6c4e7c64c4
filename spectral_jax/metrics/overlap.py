"""Overlap of two label maps: counts first, then Dice, IoU, precision and recall per class.

What is undefined is NaN: it is neither a success nor a failure, and whoever averages has to count
it. The exception is `dice_transunet`, which repeats the rule behind published tables.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer


class Counts(NamedTuple):
    """Voxels per class, background included, of one case."""

    true_positive: Int[np.ndarray, " classes"]
    true_voxels: Int[np.ndarray, " classes"]
    predicted_voxels: Int[np.ndarray, " classes"]

    @property
    def false_positive(self) -> Int[np.ndarray, " classes"]:
        """Voxels given to a class that are not of it."""
        return self.predicted_voxels - self.true_positive

    @property
    def false_negative(self) -> Int[np.ndarray, " classes"]:
        """Voxels of a class that were not given to it."""
        return self.true_voxels - self.true_positive


def confusion_matrix(
    prediction: Integer[np.ndarray, "*spatial"],
    truth: Integer[np.ndarray, "*spatial"],
    num_classes: int,
) -> Int[np.ndarray, "classes classes"]:
    """Number of voxels of each true class (row) that were given to each class (column).

    Args:
      prediction: labels from 0 to `num_classes - 1`, of any number of axes.
      truth: labels of the same shape.
      num_classes: number of classes, background included.

    Raises:
      ValueError: for arrays of different shapes, of no integer type, or with a label out of range.

    >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2)
    array([[1, 1],
           [0, 1]])
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    check_labels(prediction, truth, num_classes)
    pairs = truth.ravel().astype(np.intp) * num_classes + prediction.ravel()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def check_shapes(prediction: np.ndarray, truth: np.ndarray) -> None:
    """Raises ValueError unless both have one shape."""
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction has shape {prediction.shape} but truth has {truth.shape}: "
            "bring the prediction to the original size first"
        )


def check_labels(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> None:
    """Raises ValueError unless both hold class numbers and have one shape."""
    check_shapes(prediction, truth)
    for name, labels in (("prediction", prediction), ("truth", truth)):
        if labels.dtype.kind not in "biu":
            raise ValueError(f"{name} is {labels.dtype}, expected integer labels: take the argmax")
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"{name} has labels from {labels.min()} to {labels.max()}, "
                f"expected 0 to {num_classes - 1} for num_classes={num_classes}"
            )


def overlap_counts(
    prediction: Integer[np.ndarray, "*spatial"],
    truth: Integer[np.ndarray, "*spatial"],
    num_classes: int,
) -> Counts:
    """Counts per class of one case; see `confusion_matrix` for the arguments and errors.

    >>> overlap_counts(np.array([0, 1, 1]), np.array([0, 0, 1]), num_classes=2).false_positive
    array([0, 1])
    """
    confusion = confusion_matrix(prediction, truth, num_classes)
    return Counts(np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def mask_counts(
    prediction: Bool[np.ndarray, "*spatial"], truth: Bool[np.ndarray, "*spatial"]
) -> Counts:
    """Counts of one class of one case from its masks, as arrays of one number.

    >>> mask_counts(np.array([False, True, True]), np.array([False, False, True])).true_positive
    array([1])
    """
    check_shapes(prediction, truth)
    both = prediction & truth
    return Counts(*(np.array([np.count_nonzero(mask)]) for mask in (both, truth, prediction)))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> Float[np.ndarray, " classes"]:
    undefined = np.full(denominator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def dice(counts: Counts) -> Float[np.ndarray, " classes"]:
    """Dice, 2 TP / (2 TP + FP + FN); NaN for a class in neither truth nor prediction."""
    return _ratio(2 * counts.true_positive, counts.true_voxels + counts.predicted_voxels)


def iou(counts: Counts) -> Float[np.ndarray, " classes"]:
    """Intersection over union, TP / (TP + FP + FN); NaN for a class in neither."""
    union = counts.true_voxels + counts.predicted_voxels - counts.true_positive
    return _ratio(counts.true_positive, union)


def precision(counts: Counts) -> Float[np.ndarray, " classes"]:
    """Precision, TP / (TP + FP); NaN where nothing is predicted."""
    return _ratio(counts.true_positive, counts.predicted_voxels)


def recall(counts: Counts) -> Float[np.ndarray, " classes"]:
    """Recall, TP / (TP + FN), one minus the false-negative rate; NaN where the class is absent."""
    return _ratio(counts.true_positive, counts.true_voxels)


def dice_transunet(counts: Counts) -> Float[np.ndarray, " classes"]:
    """Dice as in the tables of TransUNet (arXiv 2102.04306) and of the work that follows its code.

    A prediction where the truth is empty scores 1, no prediction scores 0, also where both are
    empty. For comparison with the literature only.
    """
    where_predicted = np.where(counts.true_voxels > 0, dice(counts), 1.0)
    return np.where(counts.predicted_voxels > 0, where_predicted, 0.0)
