"""The interval of a study: by hand, against statsmodels' figures, and in simulated studies."""

import numpy as np
import pytest
from scipy import stats

from spectral_jax.studies.results import differences
from spectral_jax.studies.statistics import (
    complete,
    holm_levels,
    mixed_estimate,
    slope_weights,
    verdict,
)

UNITS = 20
STUDIES = 2000
ALPHA = 0.05
# with 2000 studies, what a rate of exactly 5 % stays below in all but 1 of 1000 tests
NOMINAL = stats.binom.isf(1e-3, STUDIES, ALPHA) / STUDIES


def simulate(rng, seeds, of_seed, of_unit, rest, gain=0.0, studies=STUDIES, draw=None):
    """Differences `[studies, seeds, units]` with these standard deviations, of which the first two
    are those that seeds and units have in the mean of a study."""
    draw = draw or (lambda shape: rng.standard_normal(shape))
    return (
        gain
        + of_seed * np.sqrt(seeds) * draw((studies, seeds, 1))
        + of_unit * np.sqrt(UNITS) * rng.standard_normal((studies, 1, UNITS))
        + rest * np.sqrt(seeds * UNITS) * rng.standard_normal((studies, seeds, UNITS))
    )


def rejected(tables, alpha=ALPHA):
    return np.mean([mixed_estimate(table).p_value() < alpha for table in tables])


# --- one table ------------------------------------------------------------------------------------


def test_it_is_the_variance_of_a_crossed_mixed_model(rng):
    """Written out: components by the method of moments, then the variance of the mean."""
    table = simulate(rng, 6, 3.0, 3.0, 0.5, studies=1)[0]
    seeds, units = table.shape
    a = units * table.mean(1).var(ddof=1)
    b = seeds * table.mean(0).var(ddof=1)
    rest = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    e = (rest**2).sum() / ((seeds - 1) * (units - 1))
    component_seed, component_unit = (a - e) / units, (b - e) / seeds
    assert min(component_seed, component_unit) > 0
    variance = component_seed / seeds + component_unit / units + e / (seeds * units)
    found = mixed_estimate(table)
    assert found.mean == pytest.approx(table.mean(), rel=1e-12)
    assert found.error**2 == pytest.approx(variance, rel=1e-12)
    assert (found.seeds, found.units, found.units_left_out) == (seeds, units, 0)
    low, high = found.interval(0.05)
    assert found.p_value(low) == pytest.approx(0.05, rel=1e-9)
    assert found.p_value(high) == pytest.approx(0.05, rel=1e-9)


def test_where_only_seeds_vary_it_is_the_paired_t_test(rng):
    table = rng.standard_normal((7, 1)) + np.zeros((1, UNITS))
    expected = stats.ttest_1samp(table.mean(1), 0)
    found = mixed_estimate(table)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-12)
    interval = expected.confidence_interval(0.95)
    np.testing.assert_allclose(found.interval(), (interval.low, interval.high), rtol=1e-12)
    turned = mixed_estimate(table.T)  # and the same of units
    assert turned.p_value() == pytest.approx(found.p_value(), rel=1e-12)


def test_a_component_below_zero_counts_as_zero(rng):
    """The error is never below what either factor alone says."""
    for table in simulate(rng, 5, 0.0, 0.0, 1.0, studies=50):
        found = mixed_estimate(table)
        alone = [stats.sem(table.mean(axis)) for axis in (0, 1)]
        assert found.error >= max(alone) * (1 - 1e-12)


def test_units_that_a_run_lacks_are_left_out_and_counted():
    table = np.array([[1.0, np.nan, 3.0, 4.0], [2.0, 5.0, 4.0, 6.0], [np.nan] * 4])
    np.testing.assert_array_equal(complete(table), [[1, 3, 4], [2, 4, 6]])
    found = mixed_estimate(table)
    assert (found.seeds, found.units, found.units_left_out) == (2, 3, 1)


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (0, 0)])
def test_one_seed_or_one_unit_tells_no_error(shape):
    found = mixed_estimate(np.ones(shape))
    assert np.isnan(found.p_value())
    assert np.isnan(found.interval()).all()
    assert verdict(*found.interval(), 0.01) == "undecided"


# --- the rule -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 2.0, "gain"),
        (0.1, 0.7, "gain, smaller than claimed"),
        (-0.1, 0.7, "no relevant gain"),
        (-2.0, -1.0, "no relevant gain"),
        (-0.1, 0.9, "undecided"),
        (np.nan, np.nan, "undecided"),
    ],
)
def test_four_verdicts(low, high, expected):
    assert verdict(low, high, 0.81) == expected


def test_holms_levels_reject_what_holms_p_values_reject(rng):
    """Against the textbook's adjusted p: min over later steps of p (m - k + 1)."""
    for _ in range(200):
        p = rng.random(4) ** 4
        order = np.argsort(p)
        adjusted = np.empty(4)
        adjusted[order] = np.maximum.accumulate(p[order] * [4, 3, 2, 1])
        np.testing.assert_array_equal(p < holm_levels(p), adjusted < 0.05)
    assert holm_levels(np.array([np.nan, 0.01])).tolist() == [0.05, 0.025]


def test_slope_is_that_of_least_squares(rng):
    x, y = np.array([0.0, 1, 2, 3, 4]), rng.standard_normal(5)
    assert slope_weights(x) @ y == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-12)


# --- simulated studies ----------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize("spread", [(1, 0.2, 0.2), (0.2, 1, 0.2), (1, 1, 0.5), (0.5, 0.5, 1)])
def test_false_gains_are_at_most_nominal(rng, seeds, spread):
    assert rejected(simulate(rng, seeds, *spread)) < NOMINAL
    # as Holm's first step of three looks
    at_first = rejected(simulate(rng, seeds, *spread), ALPHA / 3)
    assert at_first < stats.binom.isf(1e-3, STUDIES, ALPHA / 3) / STUDIES


def test_the_interval_covers_the_true_gain(rng):
    tables = simulate(rng, 10, 1.0, 1.0, 0.5, gain=3.0)
    intervals = np.array([mixed_estimate(table).interval() for table in tables])
    covered = np.mean((intervals[:, 0] <= 3) & (intervals[:, 1] >= 3))
    assert 1 - NOMINAL < covered < 0.98


def test_clusters_are_averaged_first_or_chance_looks_like_a_gain(rng):
    """Ten seeds; 15 videos of 20 frames, which share their video's effect."""
    videos, frames = 15, 20
    of_seed = 0.1 * rng.standard_normal((STUDIES // 3, 10, 1, 1))
    of_video = rng.standard_normal((STUDIES // 3, 1, videos, 1))
    rest = rng.standard_normal((STUDIES // 3, 10, videos, frames))
    scores = of_seed + of_video + rest
    as_videos = rejected(scores.mean(-1))
    as_frames = rejected(scores.reshape(len(scores), 10, -1))
    assert as_videos < stats.binom.isf(1e-3, STUDIES // 3, ALPHA) / (STUDIES // 3)
    assert as_frames > 0.3


def test_with_skewed_seeds_no_promise_holds(rng):
    """One training in five fails by five points: what the failures are counted for."""

    def draw(shape):
        return np.where(rng.random(shape) < 0.2, -5.0, 0.0) + 1.0 + 0.3 * rng.standard_normal(shape)

    tables = simulate(rng, 5, 1 / np.sqrt(5), 0.02, 0.02, studies=1000, draw=draw)
    assert 0.15 < rejected(tables) < 0.5  # of a true mean of 0
    tables = simulate(rng, 10, 1 / np.sqrt(10), 0.02, 0.02, studies=1000, draw=draw)
    assert 0.08 < rejected(tables) < 0.25


def test_power_of_ten_seeds_is_as_it_was_computed(rng):
    """A gain of 0.81 points; deviations of 0.5 over seeds, 0.85 over patients, 1 of the rest."""
    spread = (0.5 / np.sqrt(10), 0.85 / np.sqrt(UNITS), 1.0 / np.sqrt(10 * UNITS))
    studies = 1500
    tables = [simulate(rng, 10, *spread, gain=gain, studies=studies) for gain in (0.81, 0, 0)]
    p = np.array([[mixed_estimate(table).p_value() for table in of] for of in tables]).T
    alone = np.mean(p[:, 0] < ALPHA)
    with_holm = np.mean([of[0] < holm_levels(of)[0] for of in p])  # beside two true nulls
    assert 0.8 < alone < 0.9
    assert 0.63 < with_holm < 0.75


def test_wrong_verdicts_of_three_comparisons_together_are_at_most_nominal(rng):
    """A gain where there is none, or none where it is as large as claimed, both count."""
    spread = (1.0, 1.0, 0.5)
    margin = 5.0
    for truths in ([0, 0, 0], [margin] * 3, [0, margin, margin], [0, 2 * margin, margin]):
        tables = [simulate(rng, 10, *spread, gain=gain, studies=1000) for gain in truths]
        wrong = 0
        for of_study in zip(*tables, strict=True):
            found = [mixed_estimate(table) for table in of_study]
            levels = holm_levels(np.array([of.p_value() for of in found]))
            said = [
                verdict(*of.interval(level), margin)
                for of, level in zip(found, levels, strict=True)
            ]
            wrong += any(
                (gain <= 0 and word.startswith("gain"))
                or (gain >= margin and word in ("gain, smaller than claimed", "no relevant gain"))
                for gain, word in zip(truths, said, strict=True)
            )
        assert wrong / 1000 < stats.binom.isf(1e-3, 1000, ALPHA) / 1000, truths


# --- arms side by side ----------------------------------------------------------------------------


def test_arms_are_compared_seed_by_seed_and_unit_by_unit():
    """In whatever order they come; what only one arm has is left out, or not a number."""
    arm = {1: {"a": 10.0, "b": 20.0}, 2: {"a": 30.0, "b": 40.0}, 7: {"a": 0.0, "b": 0.0}}
    none = {3: {"a": 9.0, "b": 9.0}, 2: {"b": 38.0, "a": 29.0}, 1: {"b": 16.0}}
    found = differences({"arm": arm, "none": none}, {"arm": 1, "none": -1})
    np.testing.assert_array_equal(found, [[np.nan, 4.0], [1.0, 2.0]])
    assert differences({"arm": arm}, {"arm": 1, "none": -1}).size == 0
