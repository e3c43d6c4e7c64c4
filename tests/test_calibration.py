"""Calibration: known values, sums that merge, a planted temperature, one run to the end."""

import json

import numpy as np
import pytest
from fake_split import make_split
from test_predictor import trained

from spectral_jax.data.sources import Split, Volume
from spectral_jax.evaluation.calibrate import fit_temperature, measure_calibration
from spectral_jax.evaluation.cases import MatchedCases
from spectral_jax.metrics.calibration import (
    ace,
    brier,
    calibration_sums,
    dilated_union,
    ece,
    mce,
    nll,
    scale_temperature,
)


def softmax(logits):
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def drawn(rng, probabilities):
    """Classes drawn with these probabilities: what makes a predictor calibrated."""
    return (rng.random((len(probabilities), 1)) > probabilities.cumsum(-1)[:, :-1]).sum(-1)


def test_a_calibrated_predictor_has_no_more_error_than_its_sample(rng):
    p = softmax(rng.normal(0, 2, (40_000, 3)))
    sums = calibration_sums(p, drawn(rng, p))
    # E|mean of n draws - its expectation| is sqrt(2 / pi) sd for a Gaussian; summed over bins
    for bins, confidence in [(sums.top_label, p.max(-1)), (sums.of_class(1), p[:, 1])]:
        index = np.minimum((confidence * 20).astype(int), 19)
        variance = np.bincount(index, confidence * (1 - confidence), 20)
        expected = np.sqrt(2 / np.pi * variance).sum() / len(p)
        spread = np.sqrt((1 - 2 / np.pi) * variance.sum()) / len(p)
        assert abs(ece(bins) - expected) < 4 * spread
    assert nll(sums) == pytest.approx(-(p * np.log(p)).sum(-1).mean(), abs=0.02)
    assert brier(sums) == pytest.approx((1 - (p**2).sum(-1)).mean(), abs=0.02)


def test_an_overconfident_predictor_has_the_known_error():
    p = np.tile([0.9, 0.1], (1000, 1))
    truth = np.repeat([0, 1], [600, 400])
    sums = calibration_sums(p, truth)
    for error in (ece, ace, mce):
        assert error(sums.top_label) == pytest.approx(0.3)
        assert error(sums.of_class(1)) == pytest.approx(0.3)
    assert brier(sums) == pytest.approx(0.6 * 0.02 + 0.4 * 1.62)
    assert nll(sums) == pytest.approx(-0.6 * np.log(0.9) - 0.4 * np.log(0.1))


def test_errors_of_two_bins_by_hand():
    # 3 pixels at 0.95, all right; 1 at 0.55, wrong
    p = np.array([[0.95, 0.05]] * 3 + [[0.55, 0.45]])
    top = calibration_sums(p, np.array([0, 0, 0, 1])).top_label
    assert ece(top) == pytest.approx(0.75 * 0.05 + 0.25 * 0.55)
    assert ace(top) == pytest.approx((0.05 + 0.55) / 2)
    assert mce(top) == pytest.approx(0.55)
    assert top.count.sum() == 4
    assert (top.count > 0).sum() == 2


def test_sums_of_halves_are_those_of_the_whole(rng):
    p = softmax(rng.normal(0, 2, (12, 10, 3))).astype(np.float32)
    truth = rng.integers(0, 3, (12, 10))
    whole = calibration_sums(p, truth)
    merged = calibration_sums(p[:5], truth[:5]) + calibration_sums(p[5:], truth[5:])
    region = rng.random((12, 10)) < 0.3
    parts = calibration_sums(p, truth, region) + calibration_sums(p, truth, ~region)
    for other in (merged, parts):
        for ours, theirs in zip(vars(whole).values(), vars(other).values(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    # and are what a loop over pixels finds
    count = np.zeros((4, 20))
    accuracy = np.zeros((4, 20))
    squares = 0.0
    for of_pixel, y in zip(p.reshape(-1, 3).astype(float), truth.ravel(), strict=True):
        top = int(of_pixel.argmax())
        for row, value, right in [(0, of_pixel[top], top == y)] + [
            (1 + c, of_pixel[c], c == y) for c in range(3)
        ]:
            count[row, min(int(value * 20), 19)] += 1
            accuracy[row, min(int(value * 20), 19)] += right
        squares += ((of_pixel - np.eye(3)[y]) ** 2).sum()
    np.testing.assert_array_equal(whole.count, count)
    np.testing.assert_array_equal(whole.accuracy, accuracy)
    assert float(whole.squared_error) == pytest.approx(squares)


def test_what_is_certain_and_what_is_nothing():
    sums = calibration_sums(np.eye(2), np.array([0, 1]))
    assert ece(sums.top_label) == brier(sums) == nll(sums) == 0
    wrong = calibration_sums(np.eye(2), np.array([1, 0]))
    assert ece(wrong.top_label) == 1
    assert brier(wrong) == 2
    assert np.isfinite(nll(wrong))
    nothing = calibration_sums(np.empty((0, 2)), np.empty(0, int))
    for value in (ece(nothing.top_label), ace(nothing.top_label), mce(nothing.top_label),
                  brier(nothing), nll(nothing)):  # fmt: skip
        assert np.isnan(value)
    with pytest.raises(ValueError, match="expected"):
        calibration_sums(np.eye(2), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match="labels up to 2"):
        calibration_sums(np.eye(2), np.array([0, 2]))


def test_the_union_grows_by_its_pixels():
    truth, prediction = np.zeros((2, 20, 20), int)
    truth[5, 5] = 2
    prediction[12, 12] = 1
    y, x = np.mgrid[:20, :20]
    away = np.minimum(abs(y - 5) + abs(x - 5), abs(y - 12) + abs(x - 12))
    np.testing.assert_array_equal(dilated_union(prediction, truth, 3), away <= 3)


@pytest.mark.parametrize("planted", [0.5, 1.0, 2.5])
def test_a_planted_temperature_is_found(rng, planted):
    logits = rng.normal(0, 2, (30_000, 3))
    truth = drawn(rng, softmax(logits))
    p = softmax(logits * planted)  # overconfident for planted > 1
    found = fit_temperature(p, truth)
    assert found == pytest.approx(planted, rel=0.03)
    scaled = scale_temperature(p, planted)
    np.testing.assert_allclose(scaled, softmax(logits), atol=1e-6)
    assert (scaled.argmax(-1) == p.argmax(-1)).all()


@pytest.fixture(scope="module")
def result(mni152, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    network = trained(image_size=64)
    result = measure_calibration(
        network, Split(mni152, "test"), Split(mni152, "validation"), workdir, max_cases=3
    )
    return workdir, result


def test_a_run_is_measured_before_and_after(mni152, result):
    workdir, result = result
    written = json.loads((workdir / "calibration" / "mni152-test.json").read_text())
    assert written["checkpoint"] == {"name": "best", "step": 7}
    assert len(written["cases"]) == 3
    before, after = (
        written["regions"]["all"][state] for state in ("as_trained", "temperature_scaled")
    )
    assert written["temperature"] == result["temperature"] > 1  # a threshold is overconfident
    assert after["nll"] < before["nll"]
    assert set(before["classwise"]) == {"grey matter", "white matter"}
    assert len(before["reliability"]["edges"]) == 21
    empty = [n == 0 for n in before["reliability"]["count"]]
    assert [c is None for c in before["reliability"]["confidence"]] == empty
    pixels = [
        Split(mni152, "test").volume(row["case"]).label.size for row in written["cases"]
    ]  # the total is the mean over cases, by their pixels
    assert sum(before["reliability"]["count"]) == sum(pixels)
    mean = np.average([row["brier"] for row in written["cases"]], weights=pixels)
    assert before["brier"] == pytest.approx(mean)
    union = written["regions"]["dilated_union"]["as_trained"]
    assert sum(union["reliability"]["count"]) < sum(pixels)


def test_the_temperature_is_that_of_the_validation_split(rng, tmp_path):
    """Each split has one of its own: labels are drawn from softer or sharper probabilities."""
    network = trained(image_size=64)

    def split(name, temperature):
        volumes = {}
        for case in ("a", "b"):
            # where no class is nearly certain
            image = rng.integers(64, 192, (1, 64, 64, 1)).astype(np.uint8)
            x = image[..., 0] / 255
            logits = 40 * np.stack([0.3 - x, np.zeros_like(x), x - 0.7], axis=-1)
            p = softmax(logits / temperature).reshape(-1, 3)
            label = drawn(rng, p).reshape(x.shape).astype(np.uint8)
            volumes[case] = Volume(case, image, label, None)
        return make_split(network.data, volumes, name)

    result = measure_calibration(network, split("test", 0.5), split("validation", 2.0), tmp_path)
    assert result["temperature"] == pytest.approx(2.0, rel=0.1)
    # right for the other split, and so worse for this one
    before, after = (
        result["regions"]["all"][state]["nll"] for state in ("as_trained", "temperature_scaled")
    )
    assert after > before


def test_probability_of_classes_that_a_split_lacks_goes_to_the_background(mni152, rng):
    network = trained(image_size=64)
    network.data.__dict__["classes"] = ("background", "lesion", "white matter")
    cases = MatchedCases(network, Split(mni152, "test"))
    p = softmax(rng.normal(0, 1, (4, 5, 3)))
    merged = cases.restrict_probabilities(p)
    np.testing.assert_allclose(merged[..., 0], p[..., 0] + p[..., 1])
    np.testing.assert_array_equal(merged[..., 1:], np.stack([0 * p[..., 1], p[..., 2]], -1))
