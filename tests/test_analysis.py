"""Error analysis on small volumes whose components, misses and distances are known."""

import json

import numpy as np
import pytest
from test_predictor import trained

from spectral_jax.data.sources import Split, Volume
from spectral_jax.evaluation.analysis import (
    analyse_errors,
    class_properties,
    compare_distances,
    describe_image,
    distances_from,
    find_objects,
    misses_by_distance,
    summarise_confusion,
    summarise_misses,
    summarise_objects,
    summarise_properties,
)


def box(shape, *corners):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*corner) for corner in corners)] = True
    return mask


def test_objects_are_components_and_missed_below_a_tenth():
    shape = (2, 12, 12)
    truth = box(shape, (0, 2), (0, 5), (0, 2)) | box(shape, (0, 1), (8, 10), (8, 10))
    truth |= box(shape, (1, 2), (10, 11), (10, 11))  # touches by a corner: an object of its own
    found = box(shape, (0, 1), (0, 1), (0, 2)) | box(shape, (0, 1), (10, 12), (0, 12))
    rows = find_objects(found, truth, (5.0, 1.0, 2.0))
    by_size = {row["size_px"]: row for row in rows}
    assert sorted(by_size) == [1, 4, 20]
    assert by_size[20] == {"size_px": 20, "size_mm3": 200, "recall": 0.1, "missed": False}
    assert by_size[4]["missed"]
    assert by_size[1]["recall"] == 0
    assert find_objects(found, np.zeros(shape, bool)) == []


def test_missed_objects_by_thirds_of_size():
    sizes = [(1, True), (2, True), (3, True), (4, False), (50, False), (60, True)]
    rows = [{"size_px": size, "missed": missed} for size, missed in reversed(sizes)]
    got = summarise_objects(rows)
    assert (got["objects"], got["missed"], got["rate"]) == (6, 4, 4 / 6)
    assert [third["rate"] for third in got["by_size"]] == [1, 0.5, 0.5]
    assert [(third["low_px"], third["high_px"]) for third in got["by_size"]] == [
        (1, 2),
        (3, 4),
        (50, 60),
    ]
    assert len(summarise_objects(rows[:1])["by_size"]) == 1
    assert np.isnan(summarise_objects([])["rate"])


def test_misses_are_binned_by_distance_in_the_slice():
    # a square of 21 px: rings at 0.5, 1.5, ... 10.5 px from its boundary, of 80, 72, ... 1 voxels
    truth = box((3, 25, 25), (0, 3), (2, 23), (2, 23))  # slices do not bound each other
    found = truth & ~box(truth.shape, (0, 1), (2, 3), (2, 23))  # an edge of one slice
    found &= ~box(truth.shape, (1, 2), (12, 13), (12, 13))  # a centre
    rings = [80, 72, 64 + 56, 48 + 40 + 32 + 24, 16 + 8 + 1]
    expected = np.array([[3 * ring, 0] for ring in rings])
    expected[0, 1], expected[4, 1] = 21, 1
    np.testing.assert_array_equal(misses_by_distance(found, truth), expected)
    # the centre of 3 x 3 lies sqrt(2) - 0.5 = 0.9 px from a missing corner, 1.5 px without one
    square = box((1, 5, 5), (0, 1), (1, 4), (1, 4))
    assert misses_by_distance(square, square)[1, 0] == 1
    square[0, 1, 1] = False
    assert misses_by_distance(square, square)[1, 0] == 0
    everywhere = np.ones((1, 2, 2), bool)
    np.testing.assert_array_equal(misses_by_distance(~everywhere, everywhere)[4], [4, 4])


def test_where_the_missed_went():
    confusion = np.array([[90, 1, 0], [4, 6, 10], [0, 5, 15]])
    got = summarise_misses(1, confusion, np.zeros((5, 2), int), ("background", "a", "b"))
    assert (got["true_voxels"], got["missed_voxels"], got["missed_share"]) == (20, 14, 0.7)
    assert got["went_to"] == {"background": 4, "b": 10}
    assert [(b["low_px"], b["high_px"]) for b in got["by_boundary_distance"]] == [
        (0, 1),
        (1, 2),
        (2, 4),
        (4, 8),
        (8, None),
    ]
    shares = summarise_confusion(confusion, [1, 2])
    assert (shares["inter_class_voxels"], shares["inter_class_share"]) == (15, 15 / 40)
    assert summarise_confusion(confusion, [1])["inter_class_voxels"] == 0


def test_properties_of_a_bar():
    truth = box((1, 20, 30), (0, 1), (8, 10), (5, 21))  # 2 x 16
    image = np.full((1, 20, 30, 1), 51, np.uint8)
    image[truth] = 153
    image[0, 16:] = 255  # further than the ring
    found = box(truth.shape, (0, 1), (8, 9), (5, 21))
    got = class_properties(Volume("a", image, truth.astype(np.uint8), None), found, truth)
    # a uniform distribution over 2 x 16: the deviations are as 1 to 8
    expected = {"dice": 2 / 3, "size_px": 32, "elongation": 8, "mean_intensity": 0.6}
    assert got == pytest.approx(expected | {"contrast": 0.4})
    wide = Volume("a", image, truth.astype(np.uint8), (9.0, 8.0, 1.0))  # 9 x 16 x 16 mm
    assert class_properties(wide, found, truth)["elongation"] == pytest.approx(1)
    whole = np.ones_like(truth)
    assert np.isnan(class_properties(wide, found, whole)["contrast"])


def test_dice_by_thirds_and_rank():
    rows = [
        {"size_px": n, "dice": n**2 / 100, "elongation": 1.0, "mean_intensity": -n,
         "contrast": n if n > 3 else np.nan}
        for n in (6, 5, 4, 3, 2, 1)
    ]  # fmt: skip
    got = summarise_properties(rows)
    assert got["size_px"]["spearman"] == pytest.approx(1)
    assert got["mean_intensity"]["spearman"] == pytest.approx(-1)
    assert got["mean_intensity"]["p_value"] < 0.01
    thirds = got["size_px"]["by_third"]
    assert [third["dice"] for third in thirds] == pytest.approx([0.025, 0.125, 0.305])
    assert (thirds[2]["low"], thirds[2]["high"], thirds[2]["cases"]) == (5, 6, 2)
    assert np.isnan(got["elongation"]["spearman"])  # never varies
    assert got["contrast"]["pairs"] == 3


def test_distance_by_hand():
    training = np.array([[0.0, 1.0], [2.0, 1.0]])  # means 1 and 1, deviations 1 and none
    got = distances_from(np.array([[1.0, 1.0], [4.0, 1.004]]), training)
    np.testing.assert_allclose(got, [0, np.sqrt((3**2 + 4**2) / 2)])


def test_unlike_images_are_further_and_their_error_is_found(rng):
    def picture(gain):
        return (gain * rng.integers(90, 110, (1, 16, 16, 1))).astype(np.uint8)

    training = [describe_image(picture(1)).tolist() for _ in range(6)]
    gains = {"like": 1, "brighter": 1.4, "brightest": 2}
    appearance = {name: describe_image(picture(gain)).tolist() for name, gain in gains.items()}
    dice = {"like": 0.9, "brighter": 0.7, "brightest": 0.3}
    rows = [{"case": name, "dice": value} for name, value in dice.items()]
    got = compare_distances(appearance, training, rows)
    distances = [row["distance"] for row in got["cases"]]
    assert distances == sorted(distances)
    assert distances[1] > 3 * got["training_distances"]["95%"]
    assert [row["error"] for row in got["cases"]] == pytest.approx([0.1, 0.3, 0.7])
    assert got["spearman"] == pytest.approx(1)


def test_description_is_deciles_and_gradient():
    ramp = np.tile(np.arange(0, 101, dtype=np.uint8), (1, 101, 1))[..., None]
    described = describe_image(ramp) * 255
    np.testing.assert_allclose(described[:9], np.arange(10, 100, 10))
    assert described[9] == pytest.approx(1)


def test_a_split_is_analysed_and_written(mni152, tmp_path):
    split = Split(mni152, "test")
    network = trained(image_size=64)
    result = analyse_errors(
        network, split, tmp_path, reference_split=Split(mni152, "train"), checkpoint="last"
    )
    written = json.loads((tmp_path / "analysis" / "mni152-test.json").read_text())
    assert written["checkpoint"] == {"name": "last", "step": 7}
    labels = np.concatenate([split.volume(name).label for name in split.cases])
    confusion = np.array(written["confusion"]["matrix"])
    np.testing.assert_array_equal(confusion.sum(axis=1), np.bincount(labels.ravel(), minlength=3))
    for label, name in enumerate(written["scored"], start=1):
        misses = written["false_negatives"][name]
        bins = misses["by_boundary_distance"]
        assert (
            sum(b["true_voxels"] for b in bins) == misses["true_voxels"] == (labels == label).sum()
        )
        assert sum(b["missed_voxels"] for b in bins) == misses["missed_voxels"]
        assert sum(misses["went_to"].values()) == misses["missed_voxels"]
        sizes = [row["size_px"] for row in written["objects"] if row["class"] == name]
        assert sum(sizes) == misses["true_voxels"]
        assert written["missed_object_rate"][name]["objects"] == len(sizes)
    distances = written["distance_from_training"]
    assert distances["reference"] == "mni152-train"
    assert [row["case"] for row in distances["cases"]] == list(split.cases)
    assert len(result["intra_class"]["rows"]) > len(split.cases)
