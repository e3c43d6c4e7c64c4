"""Volumes at another spacing and back: shapes, interpolation, and whole predictions."""

import dataclasses

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from test_inference_cases import GREY
from test_predictor import Threshold, expected_labels

from spectral_jax.data.datasets import DATASETS, prepare
from spectral_jax.data.resampling import (
    resample_image,
    resample_label,
    resample_slices,
    shape_at,
)
from spectral_jax.data.sources import Split, TrainingVolumes
from spectral_jax.inference.cases import find_sources, predict_sources
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.loop import patch_spacing


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def there_and_back(label, shape):
    """A label at another shape, and its classes' masks interpolated back."""
    small = resample_label(label, shape)
    masks = np.eye(3, dtype=np.float32)[small]
    back = np.stack(list(resample_slices(masks, len(masks), label.shape)))
    return back.argmax(-1)


@pytest.mark.parametrize(
    ("sides", "least"),
    [((0.5, 0.5, 0.5), 1.0), ((1, 0.5, 1), 1.0), ((0.8, 0.8, 0.8), 0.985), ((1.5, 1, 1), 0.93)],
)
def test_a_label_comes_back(shared_data, sides, least):
    """A real hippocampus of 1 mm; a whole number of voxels for each loses nothing."""
    file = nibabel.load(shared_data / "Task04_Hippocampus/labelsTr/hippocampus_004.nii.gz")
    label = np.asarray(file.dataobj).astype(np.uint8).T
    shape = shape_at(label.shape, (1.0, 1.0, 1.0), sides)
    assert shape != label.shape
    back = there_and_back(label, shape)
    for number in (1, 2):
        assert dice(back == number, label == number) >= least


@pytest.mark.parametrize(
    ("shape", "other"),
    [
        ((5, 6, 7), (5, 6, 7)),
        ((5, 6, 7), (9, 4, 7)),
        ((4, 8, 3), (1, 8, 5)),
        ((1, 3, 3), (4, 5, 6)),
    ],
)
def test_slices_are_interpolated_as_the_whole_is(shape, other, rng):
    values = rng.random((*shape, 2)).astype(np.float32)
    factors = np.divide(other, shape)
    whole = [
        ndimage.zoom(values[..., c], factors, order=1, mode="nearest", grid_mode=True)
        for c in range(2)
    ]
    found = np.stack(list(resample_slices(values, shape[0], other)))
    np.testing.assert_allclose(found, np.stack(whole, -1), atol=1e-6)


def test_images_keep_their_brightness_and_their_place():
    """A ramp stays one, from border to border; what shrinks is averaged."""
    ramp = np.broadcast_to(np.arange(0, 48_000, 1000.0)[:, None, None], (48, 4, 4))
    image = ramp[..., None].astype(np.uint16)
    for length in (24, 16, 96):
        found = resample_image(image, (length, 4, 4))
        assert found.dtype == np.uint16
        step = 48_000 / length
        middle = slice(length // 4, -length // 4)
        expected = (np.arange(length) + 0.5) * step - 500
        np.testing.assert_allclose(found[middle, 1, 1, 0], expected[middle], atol=2)
    assert resample_image(image, (48, 4, 4)) is image
    stripes = np.tile([0, 60_000], 24)[:, None].astype(np.uint16) * np.ones((1, 4), np.uint16)
    shrunk = resample_image(stripes[..., None], (12, 4))[2:-2]
    np.testing.assert_allclose(shrunk, 30_000, rtol=0.15)


def test_shapes():
    assert shape_at((10, 20, 30), (3.0, 0.5, 0.5), (1.0, 1.0, 1.0)) == (30, 10, 15)
    assert shape_at((10, 20, 30), (3.0, 0.5, 0.5), (1.0, 1.0)) == (10, 10, 15)
    assert shape_at((10, 20, 30), None, (1.0, 1.0)) == (10, 20, 30)
    assert shape_at((10, 20, 30), (3.0, 0.5, 0.5), ()) == (10, 20, 30)
    assert shape_at((1, 2, 2), (0.1, 0.1, 0.1), (5.0, 5.0, 5.0)) == (1, 1, 1)


# --- a whole network ------------------------------------------------------------------------------


def network(patch_size, spacing_mm):
    info = dataclasses.replace(
        GREY,
        classes=("background", "a", "b"),
        colors=("#000000",) * 3,
        intensity="mri_percentile",
        orientation="RAS",
        patch_spacing_mm=spacing_mm,
    )
    config = parse_config({"data": {"name": "decathlon", "patch_size": patch_size}})
    return TrainedModel(config, info, Threshold(), {}, step=1)


@pytest.mark.parametrize(
    ("patch_size", "spacing_mm"), [((4, 8, 8), (1.0, 1.0, 1.0)), ((8, 8), (1.0, 1.0))]
)
def test_predictions_come_back_to_their_grid(patch_size, spacing_mm, rng):
    predictor = Predictor(network(patch_size, spacing_mm), batch_size=4)
    blocks = rng.integers(0, 256, (3, 4, 5, 1)).astype(np.uint8)
    image = np.kron(blocks, np.ones((4, 8, 8, 1), np.uint8))
    reports = []
    rows = list(predictor.rows([image, image], reports.append, [(2.0, 0.5, 0.5), None]))
    assert sum(map(len, rows)) == 2 * 12 * 32
    found = predictor.labels(image, (2.0, 0.5, 0.5))
    assert found.shape == image.shape[:3]
    assert (found == expected_labels(image)).mean() > 0.7
    # the network saw it at 1 mm: twice as many slices of half the size
    seen = predictor.count_inputs(image, (2.0, 0.5, 0.5))
    assert sum(reports) == seen + predictor.count_inputs(image)
    at_1_mm = np.empty((24 if len(patch_size) == 3 else 12, 16, 20, 1), np.uint8)
    assert seen == predictor.count_inputs(at_1_mm)
    # unknown, or at that spacing, it is seen as it is
    for spacing in (None, (1.0, 1.0, 1.0)):
        np.testing.assert_array_equal(predictor.labels(image, spacing), expected_labels(image))


@pytest.mark.parametrize("letters", ["RAS", "LPI", "PSR"])
def test_files_keep_shape_and_affine(letters, rng, tmp_path):
    from test_geometry import stored_as

    voxels = rng.normal(0, 300, (20, 18, 6)).astype(np.float32)
    affine = np.diag([0.5, 0.7, 3.0, 1])
    affine[:3, 3] = (3, -4, 5)
    file = stored_as(nibabel.Nifti1Image(voxels, affine), letters)
    nibabel.save(file, tmp_path / "a.nii.gz")
    trained = network((4, 8, 8), (1.0, 1.0, 1.0))
    sources = find_sources([tmp_path / "a.nii.gz"], tmp_path / "out")
    (result,) = predict_sources(Predictor(trained), trained.data, sources, probabilities=True)
    np.testing.assert_allclose(result.probabilities.sum(-1), 1, atol=1e-5)
    (written,) = result.scan.write_labels(result.labels, tmp_path / "out/a", "abc", "abc")
    mask = nibabel.load(written)
    assert mask.shape == file.shape
    stored = nibabel.load(tmp_path / "a.nii.gz")  # in float32
    np.testing.assert_array_equal(mask.affine, stored.affine)
    again = nibabel.as_closest_canonical(mask).get_fdata()
    if letters == "RAS":
        assert again.any()
    same = stored_as(nibabel.Nifti1Image(voxels, affine), "RAS")
    nibabel.save(same, tmp_path / "b.nii.gz")
    sources = find_sources([tmp_path / "b.nii.gz"], tmp_path / "out")
    (straight,) = predict_sources(Predictor(trained), trained.data, sources)
    np.testing.assert_array_equal(straight.labels, result.labels)


def test_a_case_of_unknown_spacing_is_noted(tmp_path, rng):
    np.savez(tmp_path / "a.npz", image=rng.random((6, 9, 9)))
    trained = network((4, 8, 8), (1.0, 1.0, 1.0))
    sources = find_sources([tmp_path / "a.npz"], tmp_path / "out")
    (result,) = predict_sources(Predictor(trained), trained.data, sources)
    assert "the spacing is not known" in result.scan.notes[0]


# --- training -------------------------------------------------------------------------------------


@pytest.fixture
def uneven(tmp_path, rng):
    """A prepared task of three spacings, the median 1, 0.8 and 2 mm along x, y and z."""
    import json

    from test_volume_files import LABELS

    sides = {"a": (1, 0.8, 1), "b": (0.5, 0.8, 2), "c": (2, 1.6, 3)}
    for name, of in sides.items():
        for kind in ("images", "labels"):
            (tmp_path / f"raw/{kind}Tr").mkdir(parents=True, exist_ok=True)
            voxels = rng.integers(0, 3, (8, 10, 6)).astype(np.uint8)
            file = nibabel.Nifti1Image(voxels, np.diag([*of, 1]))
            nibabel.save(file, tmp_path / f"raw/{kind}Tr/{name}.nii.gz")
    listed = [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in sides
    ]
    task = {"modality": {"0": "MRI"}, "labels": LABELS, "training": listed}
    (tmp_path / "raw/dataset.json").write_text(json.dumps(task))
    folder = prepare(DATASETS["decathlon"], root=tmp_path / "raw", data_dir=tmp_path / "prepared")
    return Split(folder, "all")


def data_config(**data):
    return parse_config({"data": {"name": "decathlon", **data}}).data


def test_cases_are_brought_to_the_median_spacing(uneven):
    assert uneven.median_spacing_mm() == pytest.approx((2, 0.8, 1))
    assert patch_spacing(data_config(patch_size=(4, 4, 4)), uneven) == pytest.approx((2, 0.8, 1))
    assert patch_spacing(data_config(patch_size=(4, 4)), uneven) == pytest.approx((0.8, 1))
    given = data_config(patch_size=(4, 4), spacing_mm=(2.0, 2.0))
    assert patch_spacing(given, uneven) == (2.0, 2.0)
    for off in ({}, {"patch_size": (4, 4, 4), "resample": False}):
        assert patch_spacing(data_config(**off), uneven) == ()
    volumes = TrainingVolumes(uneven, (2.0, 0.8, 1.0))
    shapes = {volumes.case_name(i): volumes[i]["label"].shape for i in range(3)}
    assert shapes == {"a": (3, 10, 8), "b": (6, 10, 4), "c": (9, 20, 16)}
    for index in range(3):
        assert volumes[index]["image"].shape == (*volumes[index]["label"].shape, 1)


@pytest.mark.parametrize(
    "data", [{"spacing_mm": (1.0, 1.0, 1.0)}, {"spacing_mm": (1.0, 1.0), "resample": False}]
)
def test_a_spacing_is_that_of_patches(data):
    with pytest.raises(ConfigError, match=r"data\.spacing_mm=.*: expected a number for each of"):
        data_config(patch_size=(4, 4), **data)


def test_a_spacing_needs_one_to_begin_with(uneven, monkeypatch):
    monkeypatch.setattr(type(uneven), "spacing_mm", lambda self, case: None)
    assert patch_spacing(data_config(patch_size=(4, 4)), uneven) == ()
    with pytest.raises(ConfigError, match="the spacing of no case of 'decathlon' is known"):
        patch_spacing(data_config(patch_size=(4, 4), spacing_mm=(1.0, 1.0)), uneven)
