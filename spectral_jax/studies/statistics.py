"""Is an arm of a study better than another? Paired by seed and unit, with an interval.

A unit is a patient or a video. Scores of its cases and classes are averaged before anything is
tested: frames of one video are no independent witnesses. What is left is a table of differences
`[seeds, units]`, which vary with the training and with the patient, and both at once:

    d[s, u] = mean + seed[s] + unit[u] + rest[s, u],   all three random.

The claim "this loss helps" is about other trainings and other patients, so `mixed_interval` holds
both. With skewed seeds, such as one training in five that fails, no interval over few seeds keeps
its promise; failed runs are therefore counted beside it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean difference and how well it is known.

    Attributes:
      mean: over seeds and units.
      error: standard error of the mean; NaN where it cannot be told.
      freedom: degrees of freedom of that error.
      seeds: how many.
      units: how many have a score in every run that is compared.
      units_left_out: how many have not.
    """

    mean: float
    error: float
    freedom: float
    seeds: int
    units: int
    units_left_out: int

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """Low and high end of the interval with this chance of missing the true mean."""
        half = stats.t.isf(level / 2, self.freedom) * self.error
        return float(self.mean - half), float(self.mean + half)

    def p_value(self, mean: float = 0.0) -> float:
        """Two-sided p of this true mean: the level at which the interval's end touches it."""
        if not self.error > 0:
            return float("nan")
        return float(2 * stats.t.sf(abs(self.mean - mean) / self.error, self.freedom))


def complete(
    differences: Float[np.ndarray, "seeds units"],
) -> Float[np.ndarray, "complete_seeds complete_units"]:
    """The differences without seeds that have none, then without units that lack any.

    >>> complete(np.array([[1, np.nan, 3], [2, 5, 4]]))
    array([[1., 3.],
           [2., 4.]])
    """
    defined = np.isfinite(differences)
    seeds = defined.any(axis=1)
    units = defined[seeds].all(axis=0) & defined.any(axis=0)  # of no seeds, none
    return np.asarray(differences, np.float64)[np.ix_(seeds, units)]


def mixed_estimate(differences: Float[np.ndarray, "seeds units"]) -> Estimate:
    """Mean difference with the standard error of a mixed model, seeds and units crossed.

    With the mean squares A of seeds, B of units and E of the rest, the mean's variance is
    (A + B - E) / (seeds units), with Satterthwaite's degrees of freedom, (A + B - E)^2 over the
    sum of each one's square by its own degrees of freedom. For a full table this is what
    restricted maximum likelihood finds, as long as no component of variance is negative. Where
    A or B is below E, that component counts as zero: the variance is then at least that of either
    factor alone, and the degrees of freedom are that factor's.

    Args:
      differences: of each seed and unit; NaN is undefined, see `complete`.

    Returns:
      The estimate; with one seed or one unit nothing tells its error.

    >>> found = mixed_estimate(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
    >>> found.mean, round(found.error, 3), round(found.freedom, 2)
    (3.0, 1.291, 2.16)
    """
    table = complete(differences)
    seeds, units = table.shape
    left_out = differences.shape[1] - units
    if not table.size or seeds < 2 or units < 2:
        mean = float(table.mean()) if table.size else float("nan")
        return Estimate(mean, float("nan"), float("nan"), seeds, units, left_out)
    mean = table.mean()
    of_seeds, of_units = table.mean(axis=1) - mean, table.mean(axis=0) - mean
    rest = table - mean - of_seeds[:, None] - of_units
    freedoms = np.array([seeds - 1, units - 1, (seeds - 1) * (units - 1)])
    squares = (
        np.array([units * of_seeds @ of_seeds, seeds * of_units @ of_units, (rest**2).sum()])
        / freedoms
    )
    variance, freedom = squares @ (1, 1, -1), np.nan
    if variance > max(squares[:2]):
        freedom = variance**2 / (squares**2 / freedoms).sum()
    else:
        larger = int(squares[1] > squares[0])
        variance, freedom = squares[larger], freedoms[larger]
    error = float(np.sqrt(variance / table.size))
    return Estimate(float(mean), error, float(freedom), seeds, units, left_out)


def holm_levels(
    p_values: Float[np.ndarray, " tests"], alpha: float = 0.05
) -> Float[np.ndarray, " tests"]:
    """The level at which Holm's procedure (1979) looks at each test of a family.

    alpha / m for the smallest p of m, alpha / (m - 1) for the next, and so on, up to the first that
    is not below its level; those after it keep that one's. An interval with this chance of missing
    lies off 0 exactly where Holm rejects. A test that could not be made, NaN, counts in m.

    >>> holm_levels(np.array([0.9, 0.001, 0.03])).round(4)
    array([0.025 , 0.0167, 0.025 ])
    """
    p_values = np.asarray(p_values, np.float64)
    levels = np.empty(len(p_values))
    remaining = len(p_values)
    for index in np.argsort(p_values):  # NaN sorts last
        levels[index] = alpha / remaining
        if p_values[index] < levels[index] and remaining > 1:
            remaining -= 1
    return levels


def verdict(low: float, high: float, margin: float) -> str:
    """What an interval says of a gain whose claimed size is `margin`.

    - "gain": the interval lies above 0.
    - "gain, smaller than claimed": above 0, and below the margin.
    - "no relevant gain": it holds no gain as large as the margin, and does not lie above 0.
    - "undecided": anything else, and where there is no interval.

    One interval decides all four, so that none is easier to reach than another.
    """
    if low > 0:
        return "gain, smaller than claimed" if high < margin else "gain"
    return "no relevant gain" if high < margin else "undecided"


def slope_weights(positions: Sequence[float]) -> Float[np.ndarray, " positions"]:
    """Weights whose sum with values at these positions is the slope of the least-squares line.

    >>> float(slope_weights([0, 1, 2]) @ np.array([5.0, 7.0, 9.0]))
    2.0
    """
    centred = np.asarray(positions, np.float64) - np.mean(positions)
    return centred / (centred @ centred)
