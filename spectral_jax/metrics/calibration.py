"""Calibration of a network's probabilities: sums over pixels first, then errors.

The sums of two sets of pixels add up to those of both, so cases, slices and processes can be taken
one after another. With n_b pixels in bin b, their mean confidence p_b and their accuracy y_b,

    ECE = sum_b n_b / n |p_b - y_b|,    ACE = mean over non-empty b,    MCE = max over b

(Naeini et al. 2015; ACE as the average calibration error of arXiv 2506.03942, not the adaptive one
of the same letters). Bins are of equal width.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

BINS = 20
FLOOR = float(np.finfo(np.float32).tiny)  # least probability in a logarithm


@dataclasses.dataclass(frozen=True)
class Bins:
    """One reliability diagram, as sums over the pixels of each bin."""

    count: Float[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]


@dataclasses.dataclass(frozen=True)
class CalibrationSums:
    """Sums over pixels; `a + b` are those of both.

    Rows of the first three are the top label, then each class from the background on.

    Attributes:
      count: pixels in each bin.
      confidence: sums of the probability.
      accuracy: how many of them are right (top label) or of the class.
      squared_error: sum of sum_c (p_c - y_c)^2.
      log_loss: sum of -log p of the true class.
    """

    count: Float[np.ndarray, "rows bins"]
    confidence: Float[np.ndarray, "rows bins"]
    accuracy: Float[np.ndarray, "rows bins"]
    squared_error: float
    log_loss: float

    def __add__(self, other: "CalibrationSums") -> "CalibrationSums":
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return CalibrationSums(*(ours + theirs for ours, theirs in pairs))

    @property
    def pixels(self) -> float:
        """How many pixels there were."""
        return float(self.count[0].sum())

    @property
    def top_label(self) -> Bins:
        """Bins by the probability of the most probable class."""
        return Bins(self.count[0], self.confidence[0], self.accuracy[0])

    def of_class(self, label: int) -> Bins:
        """Bins by the probability of one class."""
        return Bins(self.count[1 + label], self.confidence[1 + label], self.accuracy[1 + label])


def calibration_sums(
    probabilities: Float[np.ndarray, "*spatial classes"],
    truth: Integer[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
    bins: int = BINS,
) -> CalibrationSums:
    """Sums over the pixels of a slice, a volume or any part of one.

    Args:
      probabilities: of each class; they sum to 1.
      truth: class numbers.
      region: which pixels count; all without it.
      bins: how many, of equal width, from 0 to 1.

    Raises:
      ValueError: for arrays that do not fit each other.

    >>> sums = calibration_sums(np.array([[0.1, 0.9], [0.7, 0.3]]), np.array([1, 1]))
    >>> round(ece(sums.top_label), 3), round(brier(sums), 3)
    (0.4, 0.5)
    """
    if probabilities.shape[:-1] != truth.shape:
        raise ValueError(
            f"probabilities have shape {probabilities.shape}, truth {truth.shape}: expected "
            "[*spatial, classes] and [*spatial]"
        )
    classes = probabilities.shape[-1]
    if region is None:
        region = np.ones(truth.shape, bool)
    p, y = probabilities[region].astype(float), truth[region].astype(int)
    if y.size and not 0 <= y.min() <= y.max() < classes:
        raise ValueError(f"truth has labels up to {y.max()}, the probabilities {classes} classes")
    top = p.argmax(-1)
    pixel = np.arange(len(p))
    # the top label is one more column, before those of the classes
    columns = np.column_stack([p[pixel, top], p])
    cell = np.minimum((columns * bins).astype(int), bins - 1) + bins * np.arange(1 + classes)
    size = bins * (1 + classes)
    right = np.concatenate([cell[top == y, 0], cell[pixel, 1 + y]])
    of_truth = p[pixel, y]
    # sum_c (p_c - y_c)^2, written out for one-hot y
    squared_error = np.einsum("nc,nc->", p, p) - 2 * of_truth.sum() + len(p)
    return CalibrationSums(
        count=np.bincount(cell.ravel(), minlength=size).reshape(-1, bins).astype(float),
        confidence=np.bincount(cell.ravel(), columns.ravel(), size).reshape(-1, bins),
        accuracy=np.bincount(right, minlength=size).reshape(-1, bins).astype(float),
        squared_error=float(squared_error),
        log_loss=-float(np.log(np.maximum(of_truth, FLOOR)).sum()),
    )


def dilated_union(
    prediction: Integer[np.ndarray, "height width"],
    truth: Integer[np.ndarray, "height width"],
    pixels: int = 3,
) -> Bool[np.ndarray, "height width"]:
    """Foreground of truth or prediction, dilated by `pixels`.

    Over all pixels the plain background, which is easy, makes any network look calibrated.
    """
    return ndimage.binary_dilation((prediction > 0) | (truth > 0), iterations=pixels)


def _gaps(bins: Bins) -> tuple[np.ndarray, np.ndarray]:
    """|p_b - y_b| and n_b of the bins that hold pixels."""
    filled = bins.count > 0
    count = bins.count[filled]
    return np.abs(bins.confidence[filled] - bins.accuracy[filled]) / count, count


def ece(bins: Bins) -> float:
    """Expected calibration error, sum_b n_b / n |p_b - y_b|; NaN without pixels."""
    gaps, count = _gaps(bins)
    return float(gaps @ count / count.sum()) if count.size else float("nan")


def ace(bins: Bins) -> float:
    """Average calibration error, the mean of |p_b - y_b| over non-empty bins; NaN without any."""
    gaps, _ = _gaps(bins)
    return float(gaps.mean()) if gaps.size else float("nan")


def mce(bins: Bins) -> float:
    """Maximum calibration error, the largest |p_b - y_b|; NaN without pixels."""
    gaps, _ = _gaps(bins)
    return float(gaps.max()) if gaps.size else float("nan")


def accuracy(bins: Bins) -> float:
    """Share of pixels whose top label is right; NaN without pixels."""
    count = bins.count.sum()
    return float(bins.accuracy.sum() / count) if count else float("nan")


def brier(sums: CalibrationSums) -> float:
    """Brier score, the mean over pixels of sum_c (p_c - y_c)^2, from 0 to 2; NaN without any."""
    return float(sums.squared_error / sums.pixels) if sums.pixels else float("nan")


def nll(sums: CalibrationSums) -> float:
    """Negative log-likelihood, the mean of -log p of the true class; NaN without pixels."""
    return float(sums.log_loss / sums.pixels) if sums.pixels else float("nan")


def scale_temperature(
    probabilities: Float[np.ndarray, "*spatial classes"], temperature: float
) -> Float[np.ndarray, "*spatial classes"]:
    """softmax(log p / T), which is what softmax(logits / T) is (Guo et al., arXiv 1706.04599).

    >>> scale_temperature(np.array([0.8, 0.2]), 0.5).round(3)
    array([0.941, 0.059])
    """
    logits = np.log(np.maximum(probabilities, FLOOR)) / temperature
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
