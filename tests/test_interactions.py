"""Interactions: exact small games, planted pairs, the evidence of a class, the written result."""

import itertools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spectral_jax.data.sources import DatasetInfo, Split
from spectral_jax.evaluation.interactions import (
    class_evidence,
    draw_pairs,
    interaction_strengths,
    measure_interactions,
    middle_share,
)
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.config import parse_config


def table_game(table):
    """The value of a set of players looked up by its binary number."""
    powers = 2 ** np.arange(int(np.log2(len(table))))
    return lambda sets: table[sets @ powers]


def test_all_interactions_of_a_game_add_up_to_its_value(rng):
    n = 6
    table = rng.standard_normal(2**n)
    pairs = list(itertools.permutations(range(n), 2))
    orders = range(n - 1)
    terms = interaction_strengths(table_game(table), n, pairs, orders, contexts=None)
    assert [t.shape for t in terms] == [(30, k) for k in (1, 4, 6, 4, 1)]
    alone = sum(table[2**i] - table[0] for i in range(n))
    together = sum((n - 1 - m) / (n * (n - 1)) * terms[m].mean(1).sum() for m in orders)
    assert table[-1] - table[0] == pytest.approx(alone + together, abs=1e-12)


def test_players_who_only_add_do_not_interact(rng):
    weights = rng.standard_normal(9)
    terms = interaction_strengths(
        lambda sets: sets @ weights, 9, [(0, 1), (3, 8)], [0, 3, 7], contexts=8, rng=rng
    )
    assert all(t.shape == (2, 8) for t in terms)
    np.testing.assert_allclose(terms, 0, atol=1e-12)


def test_a_planted_pair_is_found_at_its_order(rng):
    def game(sets):  # players 1 and 4 are worth 5 together while exactly two others are there
        return 5.0 * (sets[:, 1] & sets[:, 4] & (sets.sum(1) == 4))

    pairs = [(1, 4), (0, 2)]
    terms = interaction_strengths(game, 9, pairs, range(8), contexts=None)
    strength = np.array([t.mean(1) for t in terms])
    np.testing.assert_allclose(strength[:, 0], [0, 0, 5, 0, 0, 0, 0, 0])
    # the other pair makes or breaks the count: C(5, m - 2) of C(7, m) contexts hold 1 and 4
    others = [0, 0, 5 / 21, -10 / 7, 10 / 7, 0, 0, 0]
    np.testing.assert_allclose(strength[:, 1], others, atol=1e-12)
    drawn = interaction_strengths(game, 9, pairs, [2, 3], contexts=6, rng=rng)
    np.testing.assert_array_equal(drawn[0][0], 5)
    np.testing.assert_array_equal(drawn[1][0], 0)


def test_outcomes_are_kept_apart_and_contexts_leave_the_pair_out():
    seen = []

    def game(sets):
        seen.append(sets)
        return np.stack([sets[:, 0] * sets[:, 1], sets[:, 2]], axis=-1).astype(float)

    [terms] = interaction_strengths(game, 5, [(0, 1)], [2], contexts=None)
    np.testing.assert_array_equal(terms, np.broadcast_to([1.0, 0.0], (1, 3, 2)))
    neither, only_i, only_j, both = seen[0].reshape(4, 3, 5)
    np.testing.assert_array_equal(neither.sum(1), 2)
    assert not neither[:, :2].any()
    np.testing.assert_array_equal(both[:, :2].all(1), True)
    np.testing.assert_array_equal(only_i[:, :2], np.tile([True, False], (3, 1)))
    np.testing.assert_array_equal(only_j[:, :2], np.tile([False, True], (3, 1)))


def test_misfits_are_named():
    with pytest.raises(ValueError, match="with 4 players, 0 to 2"):
        interaction_strengths(lambda sets: sets.sum(1), 4, [(0, 1)], [3], contexts=None)
    with pytest.raises(ValueError, match="give rng"):
        interaction_strengths(lambda sets: sets.sum(1), 4, [(0, 1)], [1], contexts=2)


def test_pairs_are_near_and_differ(rng):
    pairs = draw_pairs(5, 60, rng)
    assert len(set(pairs)) == 60
    for i, j in pairs:
        assert 0 < max(abs(i // 5 - j // 5), abs(i % 5 - j % 5)) <= 2
    assert len(draw_pairs(2, 60, rng)) == 6


def test_evidence_is_the_mean_log_odds_of_the_true_pixels(rng):
    logits = rng.standard_normal((3, 4, 5, 3))
    truth = rng.integers(0, 2, (4, 5))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    odds = np.log(p / (1 - p))
    expected = [odds[:, truth == c, c].mean(1) for c in (0, 1)]
    masks = jnp.asarray(truth[..., None] == np.arange(3))
    evidence = class_evidence(jnp.asarray(logits), masks)
    np.testing.assert_allclose(evidence[:, :2].T, expected, atol=1e-5)
    np.testing.assert_array_equal(evidence[:, 2], 0)
    # a logit of "sigmoid" is its own log odds
    evidence = class_evidence(jnp.asarray(logits), masks, "sigmoid")
    alone = [logits[:, truth == c, c].mean(1) for c in (0, 1)]
    np.testing.assert_allclose(evidence[:, :2].T, alone, atol=1e-5)


def test_the_middle_share_is_an_area():
    ratios = [0, 0.05, 0.1, 0.25, 0.5, 0.75, 1]
    assert middle_share(ratios, np.ones(7)) == pytest.approx(0.4)
    assert middle_share(ratios, np.array(ratios)) == pytest.approx(0.7**2 - 0.3**2)
    assert middle_share([0, 0.29, 0.3, 0.7, 0.71, 1], np.array([1, 1, 0, 0, 1, 1])) == 0


class WholePicture(nn.Module):
    """The logit of class 1 is a known function of the share of the picture that is there."""

    power: int

    @nn.compact
    def __call__(self, images, *, train):
        share = (images > 0).mean((1, 2, 3)) ** self.power
        one = jnp.broadcast_to(100 * share[:, None, None], images.shape[:3])
        return jnp.stack([jnp.zeros_like(one), one, jnp.full_like(one, -1e6)], axis=-1)


def measure(mni152, workdir, power, **options):
    info = DatasetInfo("mni152", "", ("background", "grey matter", "white matter"), (), 1)
    config = parse_config({"data": {"image_size": 32}})
    network = TrainedModel(config, info, WholePicture(power), {}, step=3)
    few = {"grid": 4, "images": 2, "pairs": 3, "contexts": 4, "ratios": (0, 0.5, 1)}
    return measure_interactions(network, Split(mni152, "test"), workdir, **few | options)


def test_the_result_is_written_and_strengths_are_relative(mni152, tmp_path):
    result = measure(mni152, tmp_path, power=2)
    written = json.loads((tmp_path / "interactions" / "mni152-test.json").read_text())
    assert written["orders"] == [0, 7, 14]
    assert (written["images"], written["pairs"], written["contexts"]) == (2, 3, 4)
    for key in ("strength", "half_a", "half_b", "corrected"):
        assert np.mean(written[key]) == pytest.approx(1)
    assert np.array(written["by_image"]).shape == (2, 3)
    assert len(written["standard_error"]) == 3
    assert written["strength"] == result["strength"]
    assert measure(mni152, tmp_path, power=2)["by_image"] == result["by_image"]


def test_a_network_that_needs_the_whole_picture_has_its_interactions_at_high_orders(
    mni152, tmp_path
):
    # with share s, the second difference of s**8 rises as s**6
    strength = measure(mni152, tmp_path, power=8)["strength"]
    assert strength[0] < 0.01
    assert strength[2] > 2
    assert strength[0] < strength[1] < strength[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": 33}, "expected 2 to 32"),
        ({"contexts": 3}, "even number"),
        ({"ratios": (0.5, 0.2)}, "ascending"),
    ],
)
def test_options_out_of_range_are_named(mni152, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        measure(mni152, tmp_path, power=1, **options)
