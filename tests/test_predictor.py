"""Whole cases: slices come back at their size, windows cover and blend, scores are written."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spectral_jax.data.sources import CutPatch, DatasetInfo, Split
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.inference import predictor as module
from spectral_jax.inference.predictor import Predictor, gaussian_window, window_starts
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.config import parse_config


class Threshold(nn.Module):
    """Sees one pixel at a time: bright ones are class 1, very bright ones class 2."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images[..., :1]
        return 40 * jnp.concatenate([0.3 - x, jnp.full_like(x, 0.0), x - 0.7], axis=-1)


def trained(**data):
    info = DatasetInfo(
        name="mni152",
        modality="T1 MRI",
        classes=("background", "grey matter", "white matter"),
        colors=("#000000", "#0072B2", "#009E73"),
        channels=1,
    )
    return TrainedModel(parse_config({"data": data}), info, Threshold(), {}, step=7)


def expected_labels(image):
    x = image[..., 0] / 255
    return np.stack([0.3 - x, np.zeros_like(x), x - 0.7], -1).argmax(-1)


def test_slices_come_back_at_their_size(rng):
    image = rng.integers(0, 256, (11, 20, 20, 1)).astype(np.uint8)  # more than one batch
    predictor = Predictor(trained(image_size=20), batch_size=4)
    np.testing.assert_array_equal(predictor.labels(image), expected_labels(image))
    smooth = np.kron(image[:2, ::5, ::5], np.ones((1, 10, 8, 1), np.uint8))
    labels = predictor.labels(smooth)
    assert labels.shape == (2, 40, 32)
    assert (labels == expected_labels(smooth)).mean() > 0.8


@pytest.mark.parametrize("shape", [(13, 9, 17), (4, 8, 8), (3, 20, 5)])
def test_sliding_over_a_volume_equals_seeing_it_whole(rng, shape):
    image = rng.integers(0, 256, (*shape, 1)).astype(np.uint8)
    predictor = Predictor(trained(patch_size=(4, 8, 8)), batch_size=3)
    np.testing.assert_array_equal(predictor.labels(image), expected_labels(image))
    probabilities = np.stack(list(predictor.slices([image])))
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_windows_overlap_by_half_and_the_middle_counts_most():
    starts = sorted({start[0] for start in window_starts((20, 1, 1), (8, 1, 1), 0.5)})
    assert starts[0] == 0
    assert starts[-1] == 12
    assert max(np.diff(starts)) <= 4
    window = gaussian_window((8, 8, 5))[..., 0]
    assert window.shape == (8, 8, 5)
    assert window[4, 4, 2] == window.max()
    assert 0 < window.min() < 0.01


@pytest.mark.parametrize("shape", [(2, 50, 70), (1, 8, 100), (3, 9, 8), (1, 100, 5)])
def test_tiles_cover_a_picture_and_equal_seeing_it_whole(rng, shape, monkeypatch):
    monkeypatch.setattr(module, "PART_PIXELS", 300)  # rows come in several parts
    images = [rng.integers(0, 256, (*shape, 1)).astype(dtype) for dtype in (np.uint8, np.uint16)]
    predictor = Predictor(trained(image_size=8), batch_size=3, tiles=True)
    for image in images:
        largest = np.iinfo(image.dtype).max
        expected = expected_labels(image / largest * 255)
        np.testing.assert_array_equal(predictor.labels(image), expected)
    # tiles of several cases share a batch
    slices = list(predictor.slices(images))
    assert [of.shape for of in slices] == [(*shape[1:], 3)] * (2 * shape[0])
    for image, of_image in zip(images, np.split(np.stack(slices), 2), strict=True):
        np.testing.assert_allclose(of_image.sum(-1), 1, atol=1e-5)
        np.testing.assert_array_equal(of_image.argmax(-1), predictor.labels(image))


def test_tiles_take_a_third_more_pixels_than_there_are():
    predictor = Predictor(trained(image_size=224), tiles=True)
    count = predictor.count_inputs(np.empty((1, 12_000, 12_000, 1), np.uint8))
    assert 1 < count * 224**2 / 12_000**2 < 1.36
    assert predictor.extra_bytes(np.empty((1, 12_000, 12_000, 1), np.uint8)) < 50e6


@pytest.mark.parametrize("tiles", [False, True])
def test_large_slices_come_in_parts_of_rows(tiles, rng, monkeypatch):
    image = rng.integers(0, 256, (3, 40, 33, 1)).astype(np.uint8)
    predictor = Predictor(trained(image_size=16), batch_size=2, tiles=tiles)
    whole = list(predictor.rows([image]))
    monkeypatch.setattr(module, "PART_PIXELS", 100)
    parts = list(predictor.rows([image]))
    assert max(map(len, parts)) == 3 < max(map(len, whole))
    np.testing.assert_allclose(np.concatenate(parts), np.concatenate(whole), atol=1e-5)
    slices = list(predictor.slices([image]))
    np.testing.assert_array_equal(np.stack(slices).reshape(-1, 33, 3), np.concatenate(parts))


def test_inputs_are_counted_and_reported(rng):
    images = [rng.integers(0, 256, (depth, 20, 30, 1)).astype(np.uint8) for depth in (1, 5, 2)]
    for data, options in (
        ({"image_size": 16}, {}),
        ({"image_size": 16}, {"tiles": True}),
        ({"patch_size": (4, 8, 8)}, {}),
    ):
        predictor = Predictor(trained(**data), batch_size=4, **options)
        reports = []
        for _ in predictor.rows(images, reports.append):
            pass
        assert sum(reports) == sum(map(predictor.count_inputs, images))
        assert max(reports) == 4


def test_patches_are_cut_inside_and_padded_where_short(rng):
    volume = {
        "image": np.arange(6 * 5 * 9, dtype=np.uint16).reshape(6, 5, 9, 1),
        "label": np.ones((6, 5, 9), np.uint8),
        "record": np.int32(3),
    }
    cut = CutPatch((4, 8, 4))
    middle = cut(volume)
    assert middle["image"].shape == (4, 8, 4, 1)
    assert middle["label"].sum() == 4 * 5 * 4  # the rest is background
    np.testing.assert_array_equal(middle["image"][:, :5, :, 0], volume["image"][1:5, :, 2:6, 0])
    patches = [cut(volume, rng)["image"] for _ in range(20)]
    assert any(np.any(patch != patches[0]) for patch in patches)


def test_scores_are_written_with_examples_and_counts(mni152, tmp_path):
    split = Split(mni152, "test")
    result = evaluate(trained(image_size=64), split, tmp_path, "last")
    written = json.loads((tmp_path / "evaluation" / "mni152-test.json").read_text())
    assert written["checkpoint"] == {"name": "last", "step": 7}
    assert written["distance_unit"] == "mm"
    assert written["summary"]["dice"]["mean"] == result["summary"]["dice"]["mean"]
    ranks = [example["rank"] for example in written["examples"]]
    assert ranks[:3] == ["best", "median", "worst"]
    assert set(ranks[3:]) == {None}
    assert len({example["case"] for example in written["examples"]}) == 20  # a picture of each
    dice = [example["dice"] for example in written["examples"]]
    assert dice[0] >= dice[1] >= dice[2]
    with np.load(tmp_path / "evaluation" / "mni152-test-examples.npz") as pictures:
        assert pictures["best_image"].shape == pictures["best_prediction"].shape == (233, 197)
    evaluate(trained(image_size=64), split, tmp_path, "last", dataset="mni152-elsewhere")
    again = json.loads((tmp_path / "evaluation" / "mni152-elsewhere-test.json").read_text())
    assert again["dataset"] == "mni152-elsewhere"
    assert json.loads((tmp_path / "evaluation" / "mni152-test.json").read_text()) == written


def test_other_classes_are_refused(mni152, tmp_path):
    network = trained(image_size=64)
    network.data.__dict__["classes"] = ("background", "heart")
    with pytest.raises(ValueError, match="none of which is one of heart"):
        evaluate(network, Split(mni152, "test"), tmp_path)
