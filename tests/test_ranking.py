"""Recall at the true volume, against sorting all voxels."""

import numpy as np
import pytest

from spectral_jax.metrics.ranking import (
    rank_correlation,
    ranking_counts,
    recall_at_true_volume,
)


def test_it_is_what_sorting_finds_and_slices_add_up(rng):
    truth = rng.random((4, 30, 31)) < 0.1
    probability = 1 / (1 + np.exp(-(rng.normal(size=truth.shape) * 3 + 2 * truth - 4)))
    best = np.argsort(-probability, axis=None)[: truth.sum()]
    expected = truth.ravel()[best].mean()
    counts = sum(ranking_counts(p, t) for p, t in zip(probability, truth, strict=True))
    # voxels of one bin count as ties
    assert recall_at_true_volume(counts) == pytest.approx(expected, abs=0.005)


def test_another_cut_of_the_same_ranking_changes_nothing(rng):
    """A bolder network has the higher recall; at equal volume it has what its ranking is worth."""
    truth = rng.random(2000) < 0.2
    logit = rng.normal(size=2000) + truth
    recalls = [
        recall_at_true_volume(ranking_counts(1 / (1 + np.exp(-(logit + bias))), truth))
        for bias in (-2.0, 0.0, 2.0)
    ]
    plain = [(logit + bias > 0)[truth].mean() for bias in (-2.0, 0.0, 2.0)]
    assert max(plain) - min(plain) > 0.5
    assert max(recalls) - min(recalls) < 0.01


def test_certain_voxels_are_ties_and_no_truth_is_undefined():
    truth = np.array([True, False, False, True])
    counts = ranking_counts(np.array([1.0, 1.0, 0.0, 0.0]), truth)
    assert recall_at_true_volume(counts) == 0.5
    assert recall_at_true_volume(ranking_counts(np.ones(4), truth)) == 0.5  # any order is as good
    assert np.isnan(recall_at_true_volume(ranking_counts(np.ones(4), np.zeros(4, bool))))


def test_rank_correlation_is_of_the_pairs_that_are_defined():
    found = rank_correlation([1, 2, np.nan, 4, 3], [1, 4, 0, 9, 10])
    assert found["spearman"] == pytest.approx(0.8)
    assert found["pairs"] == 4
    assert np.isnan(rank_correlation([1, 2, np.nan], [1, 2, 3])["p_value"])
    assert np.isnan(rank_correlation([1, 1, 1], [1, 2, 3])["spearman"])
