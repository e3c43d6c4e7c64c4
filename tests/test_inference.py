"""What fits a network, where results go, and cases that share batches."""

import dataclasses
import pathlib

import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image

from spectral_jax.data.formats import Scan, read_scan
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.data.volumes import DataError, ct_window, mri_percentile
from spectral_jax.evaluation.inference import (
    Failure,
    Prediction,
    Source,
    find_sources,
    measure,
    predict_sources,
    prepare_image,
)
from spectral_jax.evaluation.predict import Predictor
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.run import TrainedModel

GREY = DatasetInfo(
    name="folder",
    modality="any",
    classes=("background", "bright"),
    colors=("#000000", "#E69F00"),
    channels=1,
    intensity="identity",
)
CT = dataclasses.replace(GREY, name="synapse", modality="abdominal CT", intensity="ct_window")
MRI = dataclasses.replace(GREY, modality="cardiac cine MRI", intensity="mri_percentile")
COLOUR = dataclasses.replace(GREY, channels=3)


class Bright(nn.Module):
    """A pixel brighter than half is class 1; to the right of the middle it takes more."""

    slope: float = 0.0

    @nn.compact
    def __call__(self, images, *, train):
        x = images[..., :1]
        right = jnp.linspace(-1, 1, x.shape[-2])[:, None]
        return 40 * jnp.concatenate([jnp.full_like(x, 0.5) + self.slope * right, x], axis=-1)


def trained(slope=0.0, info=GREY, **data):
    return TrainedModel(parse_config({"data": data}), info, Bright(slope), {}, step=1)


def scan(image, kind, modality=""):
    return Scan(image, None, kind, None, None, modality)


def ramp(low, high, dtype=np.float32):
    return np.linspace(low, high, 60).astype(dtype).reshape(3, 4, 5, 1)


FILE = pathlib.Path("a.file")


def test_intensities_are_scaled_as_preparation_does():
    hounsfield = ramp(-1000, 500, np.int16)
    prepared = prepare_image(scan(hounsfield, "nifti"), CT, FILE)
    np.testing.assert_array_equal(prepared, ct_window(hounsfield))
    prepared = prepare_image(scan(ramp(0, 900), "nifti"), MRI, FILE)
    np.testing.assert_array_equal(prepared, mri_percentile(ramp(0, 900)))
    picture = ramp(0, 255, np.uint8)
    assert prepare_image(scan(picture, "picture"), GREY, FILE) is picture
    np.testing.assert_array_equal(
        prepare_image(scan(ramp(0, 1), "arrays"), CT, FILE), np.rint(ramp(0, 1) * 65535)
    )


def test_channels():
    grey, colour = ramp(0, 255, np.uint8), np.zeros((1, 4, 5, 3), np.uint8)
    colour[..., 1] = 7
    assert prepare_image(scan(grey, "picture"), COLOUR, FILE).shape == (3, 4, 5, 3)
    as_colour = np.repeat(grey, 3, axis=-1)
    np.testing.assert_array_equal(prepare_image(scan(as_colour, "picture"), GREY, FILE), grey)
    with pytest.raises(DataError, match=r"a\.file: 3 channels, but the network sees 1"):
        prepare_image(scan(colour, "picture"), GREY, FILE)


@pytest.mark.parametrize(
    ("image", "kind", "modality", "info", "message"),
    [
        (ramp(0, 255, np.uint8), "picture", "", CT, "a picture, but the network was trained on Ho"),
        (ramp(0, 900), "nifti", "", CT, "no value is below 0"),
        (ramp(0, 900), "nifti", "", GREY, "of type float32, but .* 8- or 16-bit pictures"),
        (ramp(-3, 3), "arrays", "", MRI, "intensities -3 ... 3; expected 0 ... 1"),
        (ramp(0, 900), "dicom", "CT", MRI, "of modality CT, but .* cardiac cine MRI"),
        (ramp(-900, 900), "dicom", "MR", CT, "of modality MR, but .* abdominal CT"),
    ],
)
def test_what_cannot_be_of_the_data_set_is_refused(image, kind, modality, info, message):
    with pytest.raises(DataError, match=message):
        prepare_image(scan(image, kind, modality), info, FILE)


def test_a_rule_of_ones_own_overrules():
    image = ramp(0, 900)
    np.testing.assert_array_equal(
        prepare_image(scan(image, "nifti"), GREY, FILE, "mri_percentile"), mri_percentile(image)
    )
    np.testing.assert_array_equal(
        prepare_image(scan(image, "nifti"), CT, FILE, "ct_window"), ct_window(image)
    )


def picture(path, size=(9, 7), value=255, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def test_folders_are_searched_and_keep_their_places(tmp_path):
    for name in ("in/a.png", "in/sub/a.png", "in/sub/b.jpg", "in/.hidden.png", "in/out/a.png"):
        picture(tmp_path / name)
    (tmp_path / "in/notes.txt").write_text("x")
    sources = find_sources([tmp_path / "in"], tmp_path / "in/out")
    assert [source.targets for source in sources] == [("a.png",), ("sub/a.png",), ("sub/b.png",)]


def test_results_never_take_each_others_place_or_an_inputs(tmp_path):
    one, two = picture(tmp_path / "a.png"), picture(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.png and .*a\.jpg: results of both"):
        find_sources([one, two], tmp_path / "out")
    (tmp_path / "a.dcm").touch()
    for path in (one, tmp_path / "a.dcm"):
        with pytest.raises(DataError, match="would take this input's place"):
            find_sources([path], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures, NIfTI"):
        find_sources([tmp_path / "empty"], tmp_path / "out")


def test_cases_share_batches_and_failures_keep_their_turn(rng, tmp_path):
    """Every mixture of sizes, types and damage gives what each case gives alone."""
    files = []
    for number in range(11):
        path = tmp_path / f"{number:02d}.png"
        size = (5 + number, 12 - number // 2)
        if number in (0, 4, 5, 10):
            path.write_bytes(b"damaged")
        elif number in (2, 3):
            Image.fromarray(rng.integers(0, 65536, size).astype(np.uint16)).save(path)
        else:
            Image.fromarray(rng.integers(0, 256, size).astype(np.uint8)).save(path)
        files.append(path)
    predictor = Predictor(trained(image_size=16), batch_size=4)
    sources = find_sources(files, tmp_path / "out")
    results = list(predict_sources(predictor, GREY, sources, probabilities=True))
    assert [result.source for result in results] == sources
    for number, (file, result) in enumerate(zip(files, results, strict=True)):
        if number in (0, 4, 5, 10):
            assert isinstance(result, Failure)
            assert str(file) in result.reason
            continue
        assert isinstance(result, Prediction)
        alone = predictor.labels(prepare_image(read_scan([file]), GREY, file))
        np.testing.assert_array_equal(result.labels, alone)
        assert result.probabilities.shape == (*alone.shape, 2)
        np.testing.assert_array_equal(result.probabilities.argmax(-1), alone)


def test_nothing_but_failures(tmp_path):
    (tmp_path / "a.png").write_bytes(b"damaged")
    sources = find_sources([tmp_path / "a.png"], tmp_path / "out")
    (result,) = predict_sources(Predictor(trained(image_size=16)), GREY, sources)
    assert isinstance(result, Failure)


@pytest.mark.parametrize("shape", [(1, 40, 25), (3, 17, 33)])
def test_tiles_see_every_pixel_at_its_own_resolution(shape, rng):
    image = rng.integers(0, 256, (*shape, 1)).astype(np.uint8)
    labels = Predictor(trained(image_size=16), batch_size=3, tiles=True).labels(image)
    np.testing.assert_array_equal(labels, image[..., 0] > 127)
    small = image[:, :16, :16]
    whole = Predictor(trained(image_size=16)).labels(small)
    tiles = Predictor(trained(image_size=16), tiles=True).labels(small)
    np.testing.assert_array_equal(tiles, whole)


@pytest.mark.parametrize("data", [{"image_size": 16}, {"patch_size": (4, 16, 16)}])
def test_mirror_images_are_averaged(data, rng):
    """The network prefers one side; with its mirror image it cannot."""
    image = rng.integers(0, 256, (6, 16, 16, 1)).astype(np.uint8)
    mirrored = image[:, :, ::-1]
    one_sided = trained(slope=0.3, **data)
    plain, averaged = (
        [np.stack(list(Predictor(one_sided, flips=flips).slices([of]))) for of in (image, mirrored)]
        for flips in (False, True)
    )
    assert np.abs(plain[0] - plain[1][:, :, ::-1]).max() > 0.1
    np.testing.assert_allclose(averaged[0], averaged[1][:, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(
        averaged[0], (plain[0] + plain[1][:, :, ::-1]) / 2, atol=1e-6
    )  # it is the same up and down


def test_mirror_images_and_tiles_are_for_networks_that_know_them():
    network = trained(image_size=16)
    config = parse_config({"augment": {"flip": False}})
    with pytest.raises(ConfigError, match="flip=False"):
        Predictor(dataclasses.replace(network, config=config), flips=True)
    with pytest.raises(ConfigError, match="tiles"):
        Predictor(trained(patch_size=(4, 8, 8)), tiles=True)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "expected"),
    [
        ((1, 3, 4), None, ("px", [5.0])),
        ((2, 3, 4), None, ("voxels", [5.0])),
        ((1, 3, 4), (9.0, 0.5, 2.0), ("mm2", [5.0])),
        ((2, 3, 4), (10.0, 2.0, 3.0), ("ml", [0.3])),
    ],
)
def test_sizes_have_units(shape, spacing_mm, expected):
    labels = np.zeros(shape, np.uint8)
    labels.flat[:5] = 1
    of = dataclasses.replace(scan(labels[..., None], "nifti"), spacing_mm=spacing_mm)
    prediction = Prediction(Source((FILE,), "a"), of, labels[..., None], labels, None)
    unit, sizes = measure(prediction, 2)
    assert unit == expected[0]
    assert sizes == pytest.approx(expected[1])


def test_the_data_sets_axes_are_used(tmp_path):
    voxels = np.zeros((4, 5, 6), np.uint8)
    voxels[0] = 255
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii.gz")
    info = dataclasses.replace(GREY, axes=(2, 0, 1))
    sources = find_sources([tmp_path / "a.nii.gz"], tmp_path / "out")
    (result,) = predict_sources(Predictor(trained(image_size=16)), info, sources)
    assert result.labels.shape == (6, 4, 5)
    (written,) = result.scan.write_labels(
        result.labels, tmp_path / "out/a", GREY.classes, GREY.colors
    )
    labels = np.asarray(nibabel.load(written).dataobj)
    assert labels.shape == voxels.shape
    assert labels[0].all()
    assert not labels[2:].any()
