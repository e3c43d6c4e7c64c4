"""Overlap metrics against hand-computed tables, identities and the rules for empty masks."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spectral_jax.metrics import METRICS, overlap, score_case, score_mask, summarise

TRUTH = np.array([[0, 0, 1, 1], [0, 2, 2, 1]])
PREDICTION = np.array([[0, 1, 1, 1], [0, 2, 0, 0]])


def label_pairs(num_classes=4):
    shapes = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7)
    labels = st.integers(0, num_classes - 1)
    return shapes.flatmap(
        lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=labels)] * 2)
    )


def test_counts_of_the_hand_table():
    assert overlap.confusion_matrix(PREDICTION, TRUTH, 3).tolist() == [
        [2, 1, 0],
        [1, 2, 0],
        [1, 0, 1],
    ]
    counts = overlap.overlap_counts(PREDICTION, TRUTH, 3)
    assert counts.true_positive.tolist() == [2, 2, 1]
    assert counts.false_positive.tolist() == [2, 1, 0]
    assert counts.false_negative.tolist() == [1, 1, 1]
    assert counts.true_voxels.tolist() == [3, 3, 2]
    assert counts.predicted_voxels.tolist() == [4, 3, 1]


def test_scores_of_the_hand_table():
    counts = overlap.overlap_counts(PREDICTION, TRUTH, 3)
    np.testing.assert_allclose(overlap.dice(counts), [4 / 7, 2 / 3, 2 / 3])
    np.testing.assert_allclose(overlap.iou(counts), [2 / 5, 1 / 2, 1 / 2])
    np.testing.assert_allclose(overlap.precision(counts), [1 / 2, 2 / 3, 1])
    np.testing.assert_allclose(overlap.recall(counts), [2 / 3, 2 / 3, 1 / 2])
    np.testing.assert_allclose(overlap.dice_transunet(counts), overlap.dice(counts))


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        # predicted and true voxels; dice, iou, precision, recall, dice_transunet
        (0, 0, (None, None, None, None, 0)),
        (5, 0, (0, 0, 0, None, 1)),
        (0, 5, (0, 0, None, 0, 0)),
        (5, 5, (1, 1, 1, 1, 1)),
    ],
)
def test_empty_masks(predicted, true, expected):
    prediction, truth = np.zeros((2, 3, 4), int)
    prediction.flat[:predicted] = 1
    truth.flat[:true] = 1
    (row,) = score_case(prediction, truth, 2)
    names = ("dice", "iou", "precision", "recall", "dice_transunet")
    assert tuple(None if math.isnan(row[name]) else row[name] for name in names) == expected
    assert (row["predicted_voxels"], row["true_voxels"]) == (predicted, true)


@given(label_pairs())
def test_identities(pair):
    prediction, truth = pair
    counts = overlap.overlap_counts(prediction, truth, 4)
    for label in range(4):
        a, b = prediction == label, truth == label
        assert counts.true_positive[label] == np.sum(a & b)
        assert counts.false_positive[label] == np.sum(a & ~b)
        assert counts.false_negative[label] == np.sum(~a & b)
    dice, iou = overlap.dice(counts), overlap.iou(counts)
    np.testing.assert_allclose(dice, 2 * iou / (1 + iou))
    swapped = overlap.overlap_counts(truth, prediction, 4)
    np.testing.assert_array_equal(overlap.dice(swapped), dice)
    np.testing.assert_array_equal(overlap.precision(swapped), overlap.recall(counts))


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (np.zeros((4, 4), int), np.zeros((4, 5), int), r"\(4, 4\).*\(4, 5\)"),
        (np.zeros((4, 4)), np.zeros((4, 4), int), "prediction is float64"),
        (np.zeros((4, 4), int), np.full((4, 4), 7), "truth has labels from 7 to 7"),
        (np.full((4, 4), -1), np.zeros((4, 4), int), "prediction has labels from -1"),
    ],
)
def test_unfit_arrays_are_refused(prediction, truth, message):
    with pytest.raises(ValueError, match=message):
        score_case(prediction, truth, 4)


def test_small_integer_types_do_not_overflow():
    labels = np.full((20, 20), 200, np.uint8)
    assert overlap.overlap_counts(labels, labels, 256).true_positive[200] == 400


def test_summary_averages_cases_then_classes():
    def row(name, **values):
        return {"case": "any", "class": name} | dict.fromkeys(METRICS, 1.0) | values

    rows = [
        row("left", dice=0.5, hd95=2.0),
        row("right", dice=0.9, hd95=math.nan),
        row("left", dice=0.7, hd95=4.0),
        row("right", dice=math.nan, hd95=None),
        row("left", dice=0.6, hd95=math.nan),
    ]
    summary, by_class = summarise(rows)
    assert list(by_class) == ["left", "right"]
    assert by_class["left"]["dice"] == pytest.approx(
        {"mean": 0.6, "sd": 0.1, "count": 3, "undefined": 0}
    )
    assert by_class["left"]["hd95"] == pytest.approx(
        {"mean": 3.0, "sd": math.sqrt(2), "count": 2, "undefined": 1}
    )
    assert by_class["right"]["dice"] == pytest.approx(
        {"mean": 0.9, "sd": math.nan, "count": 1, "undefined": 1}, nan_ok=True
    )
    assert summary["dice"] == pytest.approx({"mean": 0.75, "count": 4, "undefined": 1})
    assert summary["hd95"] == pytest.approx({"mean": 3.0, "count": 2, "undefined": 3})


def test_one_row_per_foreground_class():
    rows = score_case(PREDICTION, TRUTH, 5)
    assert len(rows) == 4
    counts = {"true_voxels", "predicted_voxels", "confused_voxels"}
    assert set(rows[0]) == {*METRICS, *counts}
    assert rows[1]["dice"] == pytest.approx(2 / 3)
    assert math.isnan(rows[3]["dice"])
    assert all(type(value) in (int, float) for row in rows for value in row.values())


def test_ignored_voxels_are_in_neither_mask(rng):
    """By a reference that takes them out of the counts, and by distances of what is left."""
    truth, prediction = rng.integers(0, 3, (2, 5, 12, 12))
    hole = rng.random(truth.shape) < 0.3
    rows = score_case(
        prediction, np.where(hole, 255, truth), 3, spacing=(2.0, 1.0, 1.0), ignore_label=255
    )
    for label, row in enumerate(rows, start=1):
        p, t = prediction[~hole] == label, truth[~hole] == label
        assert row["true_voxels"] == t.sum()
        assert row["predicted_voxels"] == p.sum()
        assert row["dice"] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()), abs=1e-12)
        assert row["precision"] == pytest.approx((p & t).sum() / p.sum(), abs=1e-12)
        masks = [(labels == label) & ~hole for labels in (prediction, truth)]
        others = prediction[~hole][t]
        confused = {"confused_voxels": ((others > 0) & (others != label)).sum()}
        assert row == score_mask(*masks, spacing=(2.0, 1.0, 1.0)) | confused
    with pytest.raises(ValueError, match="labels from 0 to 255"):
        score_case(prediction, np.where(hole, 255, truth), 3)


def test_one_mask_by_itself():
    prediction, truth = np.eye(6, dtype=bool), np.ones((6, 6), bool)
    row = score_mask(prediction, truth, nsd_tolerance=0.5)
    assert set(row) == {*METRICS, "true_voxels", "predicted_voxels"}
    assert (row["dice"], row["precision"], row["recall"]) == (12 / 42, 1.0, 1 / 6)
    # on the surface of the truth, 20 pixels, lie two of the six; these two are within reach of it
    assert row["nsd"] == (2 + 2) / (6 + 20)
    with pytest.raises(ValueError, match="prediction has shape"):
        score_mask(prediction, truth[1:])
