"""What depends on order alone: recall at a given predicted volume, and rank correlation.

A network that predicts more voxels has the higher recall, at no merit. Here the voxels of highest
probability are taken, as many as are true, so that recall, precision and Dice are one number: what
the ranking of voxels finds, whatever its cut. Counts of a case's slices add up.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

BINS = 4096
LOGIT_LIMIT = 20.0
"""Bins are of equal width in log(p / (1 - p)), up to here on both sides."""


def ranking_counts(
    probability: Float[np.ndarray, "*spatial"], truth: Bool[np.ndarray, "*spatial"]
) -> Int[np.ndarray, "2 bins"]:
    """All voxels and the true ones by bins of probability, from the lowest up.

    Args:
      probability: of one class.
      truth: where that class is.
    """
    p = np.asarray(probability, np.float64)
    with np.errstate(divide="ignore"):
        logit = np.clip(np.log(p) - np.log1p(-p), -LOGIT_LIMIT, LOGIT_LIMIT)
    cell = np.minimum(((logit / LOGIT_LIMIT + 1) / 2 * BINS).astype(int), BINS - 1)
    return np.stack([np.bincount(of.ravel(), minlength=BINS) for of in (cell, cell[truth])])


def recall_at_true_volume(counts: Int[np.ndarray, "2 bins"]) -> float:
    """Recall of the most probable voxels, as many as are true; NaN where none is.

    Voxels of one bin are taken as ties, which an order drawn at random would break.

    >>> probability, truth = np.array([0.9, 0.8, 0.6, 0.1]), np.array([True, False, True, False])
    >>> recall_at_true_volume(ranking_counts(probability, truth))
    0.5
    """
    everything, true = np.asarray(counts)[:, ::-1]
    wanted = true.sum()
    if not wanted:
        return float("nan")
    before = np.cumsum(everything) - everything
    taken = np.clip(wanted - before, 0, everything)
    share = np.divide(taken, everything, out=np.zeros(len(true)), where=everything > 0)
    return float((share * true).sum() / wanted)


def rank_correlation(
    first: Sequence[float] | Float[np.ndarray, "*shape"],
    second: Sequence[float] | Float[np.ndarray, "*shape"],
) -> dict[str, float]:
    """Spearman's correlation with its p, of the pairs that are defined.

    Returns:
      `spearman` and `p_value`, NaN for fewer than three pairs or where one never varies; `pairs`.
    """
    pairs = np.array([np.ravel(first), np.ravel(second)], np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return {"spearman": np.nan, "p_value": np.nan, "pairs": pairs.shape[1]}
    found = stats.spearmanr(*pairs)
    return {
        "spearman": float(found.statistic),
        "p_value": float(found.pvalue),
        "pairs": pairs.shape[1],
    }
