"""Paired comparisons: hand values, scipy, and simulated studies with and without an effect."""

import numpy as np
import pytest
from scipy import stats

from spectral_jax.evaluation.statistics import (
    compare,
    complete,
    crossed_estimate,
    crossed_interval,
    crossed_test,
    detectable_effect,
    effect_size,
    hierarchical_bootstrap,
    holm,
    paired_difference,
    permutation_test,
    seed_test,
    verdict,
)

TABLE = np.array([[0.01, 0.03, 0.02, 0.00], [0.02, 0.05, 0.01, 0.02], [0.00, 0.04, 0.03, 0.03]])


def simulate(rng, studies, seeds, cases=40, *, effect=0.0, seed=0.5, case=1.0, rest=1.0):
    """Differences of many studies: an effect of each seed, of each case, and the rest."""
    return (
        effect
        + seed * rng.standard_normal((studies, seeds, 1))
        + case * rng.standard_normal((studies, 1, cases))
        + rest * rng.standard_normal((studies, seeds, cases))
    )


def rejects(differences):
    _, low, high = crossed_interval(differences)
    return low > 0 or high < 0


def test_incomplete_cases_and_empty_seeds_are_left_out():
    arm = np.array([[0.5, 0.6, np.nan, 0.8], [np.nan] * 4, [0.4, 0.9, 0.7, 0.8]])
    baseline = np.array([[0.4, 0.6, 0.1, 0.7], [0.5] * 4, [0.1, 0.8, 0.7, np.nan]])
    left = complete(paired_difference(arm, baseline))
    np.testing.assert_allclose(left, [[0.1, 0.0], [0.3, 0.1]])


def test_tables_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 4\).*same order"):
        paired_difference(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="seeds, cases"):
        paired_difference(np.zeros(3), np.zeros(3))


def test_crossed_interval_by_hand():
    # means of seeds 0, 2 and 1, of cases 0 and 2: variances 1 and 2
    differences = np.array([[-1.0, 1.0], [1.0, 3.0], [0.0, 2.0]])
    mean, variances, freedom = crossed_estimate(differences)
    assert mean == 1
    np.testing.assert_allclose(variances, [1 / 3, 2 / 2])
    np.testing.assert_array_equal(freedom, [2, 1])
    # Student's table: 4.3027 and 12.7062
    half = np.sqrt(4.3027**2 / 3 + 12.7062**2)
    np.testing.assert_allclose(crossed_interval(differences), (1, 1 - half, 1 + half), rtol=1e-4)


def test_the_test_is_the_interval_that_touches_zero():
    p = crossed_test(TABLE)
    assert 0 < p < 1
    _, low, high = crossed_interval(TABLE, confidence=1 - p)
    assert low == pytest.approx(0, abs=1e-9)
    assert high == pytest.approx(2 * TABLE.mean())
    assert crossed_test(-TABLE) == pytest.approx(p)
    assert crossed_test(1000 * TABLE) == pytest.approx(p)


def test_one_factor_alone_is_students_paired_t():
    for one_seed in (TABLE[:1], TABLE[:, :1].T):
        expected = stats.ttest_1samp(one_seed[0], 0)
        assert crossed_test(one_seed) == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval(0.95)
        np.testing.assert_allclose(crossed_interval(one_seed)[1:], interval)
    assert crossed_test(TABLE[:, :1]) == pytest.approx(stats.ttest_1samp(TABLE[:, 0], 0).pvalue)
    assert np.isnan(crossed_interval(TABLE[:1, :1])[1:]).all()
    assert np.isnan(crossed_test(TABLE[:1, :1]))


def test_differences_that_never_vary():
    assert crossed_test(np.zeros((3, 4))) == 1
    assert crossed_interval(np.full((3, 4), 0.5)) == (0.5, 0.5, 0.5)
    assert crossed_test(np.full((3, 4), 0.5)) < 1e-9
    assert seed_test(np.full((3, 4), 0.5)) == 0


def test_seed_test_is_scipys_paired_t():
    arm, baseline = TABLE + 0.6, np.full(TABLE.shape, 0.6)
    expected = stats.ttest_rel(arm.mean(axis=1), baseline.mean(axis=1)).pvalue
    assert seed_test(paired_difference(arm, baseline)) == pytest.approx(expected)


def test_permutations_by_hand(rng):
    # means 1, 2, 3 of three cases: of the 8 flips, only all and none reach a mean of 2 in size
    differences = np.array([[0.0, 2.0, 3.0], [2.0, 2.0, 3.0]])
    assert permutation_test(differences, rng=rng) == pytest.approx(2 / 8)
    # with -1, 2, 3 the flips +-(1, 2, 3) are larger, +-(-1, 2, 3) the same
    assert permutation_test(differences * [-1, 1, 1], rng=rng) == pytest.approx(4 / 8)
    assert np.isnan(permutation_test(differences[:, :1], rng=rng))


def test_bootstrap_resamples_seeds_and_shared_cases(rng):
    # only seeds vary: a sample's mean is a mean of 3 draws of (0, 3, 6), so 0 has 1 in 27
    by_seed = np.array([[0.0] * 5, [3.0] * 5, [6.0] * 5])
    mean, low, high = hierarchical_bootstrap(by_seed, confidence=0.9, samples=20000, rng=rng)
    assert (mean, low, high) == (3, 1, 5)  # P(<= 0) = 3.7 %, P(<= 1) = 14.8 %
    # only cases vary: seeds that share a draw do not average it away, and do not matter
    by_case = np.tile(rng.standard_normal(30), (4, 1))
    _, low, high = hierarchical_bootstrap(by_case, rng=rng)
    _, low_one, high_one = hierarchical_bootstrap(by_case[:1], rng=rng)
    assert high - low == pytest.approx(high_one - low_one, rel=0.1)
    expected = stats.bootstrap(
        (by_case[0],), np.mean, method="percentile", rng=rng
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.05)


def test_holm_by_hand():
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 -> raised to the one before
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, np.nan, 0.6]), [1, np.nan, 1])
    assert holm([0.03]) == [0.03]
    assert holm([]).shape == (0,)


def test_effect_size_by_hand():
    differences = np.array([[-1.0, 1.0], [1.0, 3.0], [0.0, 2.0]])
    over_seeds, over_cases = effect_size(differences)
    assert over_seeds == pytest.approx(1.0)
    assert over_cases == pytest.approx(1 / np.sqrt(2))
    assert np.isnan(effect_size(differences[:1]).over_seeds)


def test_detectable_effect_of_one_factor_is_the_paired_t_tests(rng):
    cases = stats.zscore(np.arange(10.0), ddof=1)[None]
    effect = detectable_effect(cases)
    many = stats.ttest_1samp(effect + rng.standard_normal((20000, 10)), 0, axis=1).pvalue
    assert (many < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert detectable_effect(3 * cases) == pytest.approx(3 * effect)
    assert detectable_effect(cases, power=0.9) > effect
    assert detectable_effect(cases, alpha=0.01) > effect
    assert np.isnan(detectable_effect(cases[:, :1]))


STUDIES = 1500


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(
    "spread",
    [
        {"seed": 1.0, "case": 0.0, "rest": 0.1},  # the seeds decide
        {"seed": 0.5, "case": 1.0, "rest": 1.0},
        {"seed": 0.0, "case": 1.0, "rest": 1.0},  # the cases decide
    ],
    ids=["seeds", "both", "cases"],
)
def test_without_an_effect_at_most_5_percent_are_rejected(rng, seeds, spread):
    # which is as well: the 95 % interval covers the true 0 in at least 95 %
    count = sum(rejects(study) for study in simulate(rng, STUDIES, seeds, **spread))
    # a true rate of 5 % stays below this in 999 of 1000 repetitions
    assert count <= stats.binom.isf(0.001, STUDIES, 0.05)
    if spread["case"] == 0:  # one factor alone: exact, not merely safe
        assert count >= stats.binom.ppf(0.001, STUDIES, 0.05)


@pytest.mark.parametrize("seeds", [3, 5])
def test_tests_over_cases_or_seeds_alone_are_wrong_about_the_other(rng, seeds):
    # why neither is the verdict: luck of the seeds looks like an effect on every case
    study = simulate(rng, 300, seeds, seed=1.0, case=0.5, rest=0.5)
    over_cases = sum(stats.ttest_1samp(s.mean(axis=0), 0).pvalue < 0.05 for s in study)
    assert over_cases > 0.3 * 300
    study = simulate(rng, 300, seeds, seed=0.1, case=2.0, rest=0.5)
    assert sum(seed_test(s) < 0.05 for s in study) > 0.3 * 300


@pytest.mark.parametrize("seeds", [3, 5])
def test_a_detectable_effect_is_found_at_the_nominal_rate(rng, seeds):
    spread = {"seed": 0.5, "case": 1.0, "rest": 1.0}
    # variances of the means of seeds and of cases, by the model, over their number
    variances = np.array([(0.5**2 + 1 / 40) / seeds, (1 + 1 / seeds) / 40])
    planted = detectable_effect(design(variances, seeds, 40))
    studies = simulate(rng, STUDIES, seeds, effect=planted, **spread)
    error = 3.3 * np.sqrt(0.8 * 0.2 / STUDIES)
    found = sum(rejects(study) for study in studies) / STUDIES
    assert 0.8 - error <= found <= 0.86 + error
    # what a study would say of itself is of that size
    said = np.median([detectable_effect(study) for study in studies[:100]])
    assert said == pytest.approx(planted, rel=0.3)


def design(variances, seeds, cases):
    """Differences whose means have exactly these variances."""
    by_seed = stats.zscore(np.arange(seeds * 1.0), ddof=1) * np.sqrt(variances[0] * seeds)
    by_case = stats.zscore(np.arange(cases * 1.0), ddof=1) * np.sqrt(variances[1] * cases)
    return by_seed[:, None] + by_case


@pytest.mark.parametrize(("seeds", "at_most"), [(3, 0.90), (5, 0.94)])
def test_the_bootstrap_covers_too_seldom_where_seeds_decide(rng, seeds, at_most):
    # as its docstring says: this is why the verdict does not rest on it
    studies = 300
    covered = 0
    for study in simulate(rng, studies, seeds, seed=1.0, case=1.0, rest=1.0):
        _, low, high = hierarchical_bootstrap(study, samples=500, rng=rng)
        covered += low <= 0 <= high
    assert 0.6 < covered / studies < at_most


def test_compare_puts_it_together(rng):
    baseline = rng.uniform(0.6, 0.9, (3, 4))
    got = compare(baseline + TABLE, baseline, rng=rng)
    assert got.mean == pytest.approx(TABLE.mean())
    assert (got.mean, got.low, got.high) == pytest.approx(crossed_interval(TABLE))
    assert got.p_value == pytest.approx(crossed_test(TABLE))
    assert got.p_over_seeds == pytest.approx(seed_test(TABLE))
    assert got.p_over_cases == pytest.approx(2 / 16)  # all four gain
    assert got.effect_size == pytest.approx(effect_size(TABLE))
    assert got.detectable == pytest.approx(detectable_effect(TABLE))
    assert (got.seeds, got.cases, got.cases_left_out) == (3, 4, 0)
    assert TABLE.min() <= got.bootstrap_low < got.mean < got.bootstrap_high <= TABLE.max()
    assert got.low < got.bootstrap_low


def test_compare_says_what_it_left_out(rng):
    arm = TABLE.copy()
    arm[1, 2] = np.nan
    got = compare(arm, np.zeros_like(arm), rng=rng)
    assert (got.seeds, got.cases, got.cases_left_out) == (3, 3, 1)
    assert got.mean == pytest.approx(np.delete(TABLE, 2, axis=1).mean())
    nothing = compare(arm * np.nan, arm, rng=rng)
    assert (nothing.seeds, nothing.cases, nothing.cases_left_out) == (0, 0, 4)
    assert np.isnan([nothing.mean, nothing.low, nothing.p_value, nothing.p_over_cases]).all()
    assert verdict(nothing, np.nan) == "undecided: no case has a score in every run"


def judged(differences, corrected_p=None):
    comparison = compare(differences, np.zeros_like(differences), rng=np.random.default_rng(0))
    return verdict(comparison, comparison.p_value if corrected_p is None else corrected_p)


def test_verdicts():
    clear = design(np.array([4e-7, 4e-7]), 5, 40)  # half width 0.22 points
    noisy = design(np.array([4e-5, 4e-5]), 5, 40)  # 2.2 points
    assert judged(clear + 0.012) == "supported: +1.20 points (+0.98 to +1.42)"
    assert judged(clear + 0.004).startswith("supported: +0.40 points (+0.18 to +0.62), less than")
    assert judged(clear - 0.012).startswith("not supported: worse, -1.20 points")
    assert judged(clear).endswith("(-0.22 to +0.22) leaves no room for 0.81")
    assert judged(clear).startswith("not supported: ")
    detectable = 100 * detectable_effect(noisy)
    assert judged(noisy + 0.008).startswith("undecided: +0.80 points")
    assert judged(noisy + 0.008).endswith(f"could have seen {detectable:.1f} points")
    # correction for other comparisons takes the support away
    assert judged(clear + 0.012, corrected_p=0.2).startswith("undecided: ")
    assert judged(clear[:1] + 0.012).startswith("undecided: one seed")
    assert judged(clear[:, :1] + 0.012).startswith("undecided: one case")


def test_a_study_is_the_same_again_with_the_same_seed():
    first, again = (
        compare(TABLE, np.zeros_like(TABLE), rng=np.random.default_rng(3)) for _ in range(2)
    )
    assert first == again
