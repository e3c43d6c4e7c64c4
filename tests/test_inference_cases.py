"""What fits a network, where results go, and cases that share batches."""

import dataclasses
import pathlib

import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image, ImageOps

from spectral_jax.commands.predict import split_paths
from spectral_jax.data.datasets import DATASETS, prepare
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import DatasetInfo, Split
from spectral_jax.data.volumes import DataError, ct_window, mri_percentile
from spectral_jax.evaluation.cases import MatchedCases
from spectral_jax.inference.cases import (
    Failure,
    Prediction,
    Source,
    find_sources,
    find_unusual,
    measure,
    predict_sources,
    prepare_image,
)
from spectral_jax.inference.formats import Scan, read_scan
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.config import ConfigError, parse_config

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
    with pytest.raises(DataError, match=r"a\.file: 3 channels with colour in them, but 1"):
        prepare_image(scan(colour, "picture"), GREY, FILE)


@pytest.mark.parametrize(
    ("image", "kind", "modality", "info", "message"),
    [
        (ramp(0, 255, np.uint8), "picture", "", CT, "a picture, but the network was trained on Ho"),
        (ramp(0, 900), "nifti", "", CT, "no value is below 0"),
        (ramp(-2, 4), "nifti", "", CT, "values are -2 ... 4, as normalised ones are"),
        (ramp(0, 900), "nifti", "", GREY, "of type float32, but .* 8- or 16-bit pictures"),
        (ramp(-3, 3), "arrays", "", MRI, "intensities -3 ... 3; expected 0 ... 1"),
        (ramp(0, 900), "dicom", "CT", MRI, "of modality CT, but .* cardiac cine MRI"),
        (ramp(-900, 900), "dicom", "MR", CT, "of modality MR, but .* abdominal CT"),
    ],
)
def test_what_cannot_be_of_the_data_set_is_refused(image, kind, modality, info, message):
    with pytest.raises(DataError, match=message):
        prepare_image(scan(image, kind, modality), info, FILE)


def test_rescaled_dicom_without_air_is_no_ct():
    """A converter that writes RescaleIntercept 0 to values that have 1024 added."""
    of_dicom = dataclasses.replace(scan(ramp(0, 2000), "dicom", "CT"), rescaled=True)
    with pytest.raises(DataError, match="no value is below 0"):
        prepare_image(of_dicom, CT, FILE)
    of_dicom = dataclasses.replace(of_dicom, image=ramp(-1024, 2000))
    np.testing.assert_array_equal(prepare_image(of_dicom, CT, FILE), ct_window(ramp(-1024, 2000)))


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
    one, two = picture(tmp_path / "a.png"), picture(tmp_path / "b/a.png")
    with pytest.raises(DataError, match=r"a\.png and .*b/a\.png: results of both"):
        find_sources([one, two], tmp_path / "out")
    sources = find_sources([one, two, picture(tmp_path / "c.png")], tmp_path / "out")
    assert [bool(source.reason) for source in sources] == [True, True, False]
    (tmp_path / "a.dcm").touch()
    for path in (one, tmp_path / "a.dcm"):
        with pytest.raises(DataError, match="would take this input's place"):
            find_sources([path], tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures, NIfTI"):
        find_sources([tmp_path / "empty"], tmp_path / "out")


def test_one_picture_in_two_formats_has_two_results(tmp_path):
    """Of ISIC's folders, with .jpg and .png side by side."""
    for name in ("a.jpg", "a.png", "sub/a.png", "b.png"):
        picture(tmp_path / name)
    sources = find_sources([tmp_path], tmp_path / "out")
    assert [s.targets[0] for s in sources] == ["a_jpg.png", "a_png.png", "b.png", "sub/a.png"]
    picture(tmp_path / "a_jpg.png")  # the name is taken
    sources = find_sources([tmp_path], tmp_path / "out")
    failed = [source.files[0].name for source in sources if source.reason]
    assert failed == ["a.jpg", "a_jpg.png"]
    results = list(predict_sources(Predictor(trained(image_size=8)), GREY, sources))
    assert [isinstance(result, Failure) for result in results] == [True, False, True, False, False]


def test_what_systems_and_notebooks_hide_is_no_input(tmp_path):
    """Of open-edge-platform/anomalib#865, #1256, open-mmlab/mmsegmentation#849."""
    for name in ("ref.png", ".ipynb_checkpoints/ref-checkpoint.png", "sub/__MACOSX/x.png"):
        picture(tmp_path / name)
    (source,) = find_sources([tmp_path], tmp_path / "out")
    assert source.name == "ref"
    (source,) = find_sources([tmp_path / ".ipynb_checkpoints"], tmp_path / "out")  # as asked
    assert source.name == "ref-checkpoint"


@pytest.mark.parametrize("orientation", [3, 6])
def test_results_lie_over_pictures_as_viewers_show_them(orientation, rng, tmp_path):
    """Of kohya-ss/sd-scripts#1316, CVHub520/X-AnyLabeling#447."""
    stored = Image.fromarray((rng.random((12, 9)) > 0.5).astype(np.uint8) * 255)
    exif = Image.Exif()
    exif[274] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    ImageOps.exif_transpose(Image.open(tmp_path / "a.png")).save(tmp_path / "shown.png")
    sources = find_sources([tmp_path / "a.png", tmp_path / "shown.png"], tmp_path / "out")
    predictor = Predictor(trained(image_size=16))
    results = list(predict_sources(predictor, GREY, sources))
    np.testing.assert_array_equal(*(result.labels for result in results))
    assert [len(result.scan.notes) for result in results] == [1, 0]
    (file,) = results[0].scan.write_labels(
        results[0].labels, tmp_path / "out/a", GREY.classes, GREY.colors
    )
    with Image.open(file) as written:
        assert written.size == Image.open(tmp_path / "shown.png").size
        assert 274 not in written.getexif()


def test_pictures_of_fewer_bits_are_scaled_as_the_data_set(rng, tmp_path):
    """Of ilastik/ilastik#126, HenriquesLab/ZeroCostDL4Mic#110."""
    values = rng.integers(0, 4096, (9, 7)).astype(np.uint16)
    values[0, 0] = 4095
    Image.fromarray(values).save(tmp_path / "a.png")
    of_12_bits = dataclasses.replace(GREY, bits=12)
    read = read_scan([tmp_path / "a.png"])
    prepared = prepare_image(read, of_12_bits, FILE)
    np.testing.assert_array_equal(prepared[0, ..., 0], np.rint(values * (65535 / 4095)))
    values[0, 0] = 4096
    Image.fromarray(values).save(tmp_path / "a.png")
    with pytest.raises(
        DataError, match=r"the highest value is 4096, but .* use 12 bits, 0 \.\.\. 4095"
    ):
        prepare_image(read_scan([tmp_path / "a.png"]), of_12_bits, FILE)


@pytest.mark.parametrize(("highest", "noted"), [(4080, 1), (4096, 0)])
def test_dark_pictures_are_told(highest, noted, rng, tmp_path):
    """A network of full 16 bits, or of 8, takes 12 bits for a dark picture."""
    values = rng.integers(0, 4000, (9, 7)).astype(np.uint16)
    values[0, 0] = highest
    Image.fromarray(values).save(tmp_path / "a.png")
    sources = find_sources([tmp_path / "a.png"], tmp_path / "out")
    (result,) = predict_sources(Predictor(trained(image_size=16)), GREY, sources)
    assert len(result.scan.notes) == noted


def test_evaluation_sees_grey_saved_as_colour_as_prediction_does(rng, tmp_path):
    grey = rng.integers(0, 256, (12, 12)).astype(np.uint8)
    for number, image in enumerate([grey, np.stack([grey, grey, grey // 2], -1), grey, grey]):
        for kind, array in (("images", image), ("masks", grey // 128 * 255)):
            (tmp_path / "raw" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "raw" / kind / f"p{number}.png")
    folder = prepare(DATASETS["folder"], root=tmp_path / "raw", data_dir=tmp_path)
    info = dataclasses.replace(GREY, classes=("background", "foreground"))
    cases = MatchedCases(trained(info=info), Split(folder, "all"))
    np.testing.assert_array_equal(cases.volume("p2").image[0, ..., 0], grey)
    with pytest.raises(DataError, match="folder, p1: 3 channels with colour in them, but 1"):
        cases.volume("p1")


def test_commas_part_paths_unless_they_are_in_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("comma, name.png", "b.png", "c.png", "La\u0308sion.png"):
        picture(tmp_path / name)
    assert split_paths(["", " ,"]) == []  # of a variable that is not set
    with pytest.raises(DataError, match="no input is named"):
        find_sources([], tmp_path / "out")
    given = ["comma, name.png,b.png,, c.png", "missing,b.png,", "L\u00e4sion.png"]
    assert [str(path) for path in split_paths(given)] == [
        *("comma, name.png", "b.png", "c.png", "missing", "b.png", "La\u0308sion.png"),
    ]


def test_links_to_nothing_and_other_files_are_told(tmp_path, caplog):
    folder = tmp_path / "in"
    picture(folder / "a.png")
    (folder / "b.png").symlink_to("annex/b.png")  # of git annex, not fetched
    (folder / "c.png").symlink_to("c.png")
    (folder / "d.nrrd").touch()
    with caplog.at_level("WARNING"):
        sources = find_sources([folder], tmp_path / "out")
    assert [source.name for source in sources] == ["a", "b", "c"]
    assert "left out 1 files of other kinds, such as" in caplog.text
    good, *bad = predict_sources(Predictor(trained(image_size=16)), GREY, sources)
    assert isinstance(good, Prediction)
    for name, failure in zip("bc", bad, strict=True):
        assert str(folder / f"{name}.png") in failure.reason


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


@pytest.mark.parametrize("data", [{"image_size": 16}, {"patch_size": (1, 16, 16)}])
def test_a_case_on_which_the_network_fails_does_not_end_those_that_wait_with_it(data, tmp_path):
    names = ["a", "bad", "b", "c", "damaged", "worse", "d"]
    for name in names:
        dtype = np.uint16 if name in ("bad", "worse") else np.uint8
        Image.fromarray(np.full((24, 20), 200, dtype)).save(tmp_path / f"{name}.png")
    (tmp_path / "damaged.png").write_bytes(b"damaged")
    sources = find_sources([tmp_path / f"{name}.png" for name in names], tmp_path / "out")
    compiled, steps = [], []

    class OnceCompiled(nn.Module):
        """As `Bright`, but there is no memory to compile it for another type of pictures."""

        @nn.compact
        def __call__(self, images, *, train):
            compiled.append(images.shape)
            if len(compiled) > 1:
                raise MemoryError("as much as this")
            return Bright()(images, train=train)

    network = dataclasses.replace(trained(**data), model=OnceCompiled())
    predictor = Predictor(network, batch_size=4)
    results = list(
        predict_sources(predictor, GREY, sources, progress=lambda *step: steps.append(step))
    )
    assert [result.source.name for result in results] == names
    for result in results:
        if result.source.name in ("bad", "worse"):
            expected = f"{result.source.files[0]}: not predicted: MemoryError: as much as this"
            assert result.reason == expected
        elif result.source.name == "damaged":
            assert "damaged, or no picture" in result.reason
        else:
            np.testing.assert_array_equal(result.labels, np.ones((1, 24, 20)))
    of = predictor.count_inputs(np.empty((1, 24, 20, 1), np.uint8))
    assert ("d", of, of) in steps


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
    unit, sizes = measure(prediction, Labels(1))
    assert unit == expected[0]
    assert sizes == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("shape", "ones", "expected"),
    [
        ((4, 8, 8), [], ["nothing found"]),
        ((4, 8, 8), [(1, 3, 3)], []),
        ((4, 8, 8), [(1, 3, 7)], ["one touches the border"]),
        ((4, 8, 8), [(3, 3, 3)], ["one touches the border"]),
        ((1, 8, 8), [(0, 3, 3)], []),
        ((1, 8, 8), [(0, 0, 3)], ["one touches the border"]),
    ],
)
def test_what_a_person_should_look_at(shape, ones, expected):
    labels = np.zeros(shape, np.uint8)
    for place in ones:
        labels[place] = 1
    of = scan(labels[..., None], "nifti")
    prediction = Prediction(Source((FILE,), "a"), of, labels[..., None], labels, None)
    assert find_unusual(prediction, Labels(2), ("background", "one", "two")) == expected


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


def save_nifti(path, voxels):
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


def save_without_place(path):
    file = nibabel.Nifti1Image(VOXELS, None)
    file.header.set_sform(np.diag([0.0, 1, 1, 1]), code=1)
    nibabel.save(file, path)


def save_under_another_name(path):
    save_nifti(path.with_name("x.nii"), VOXELS)
    path.with_name("x.nii").rename(path)


def save_gif(path):
    frames = [Image.new("L", (9, 7), grey) for grey in (0, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def save_truncated(path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-2000])


VOXELS = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
BAD = {
    "empty.png": lambda p: p.touch(),
    "heic.jpg": lambda p: p.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "pointer.png": lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "cut.jpg": save_truncated,
    "animated.gif": save_gif,
    "floats.tif": lambda p: Image.fromarray(np.ones((9, 7), np.float32)).save(p),
    "colour.png": lambda p: picture(p, value=(9, 99, 200), mode="RGB"),
    "link.png": lambda p: p.symlink_to("nowhere.png"),
    "loop.png": lambda p: p.symlink_to(p.name),
    "folder.png": lambda p: p.mkdir() or (p / "x.txt").touch(),
    "absent.png": lambda p: None,
    "nan.nii": lambda p: save_nifti(p, VOXELS * np.float32("nan")),
    "complex.nii": lambda p: save_nifti(p, VOXELS * 1j),
    "four.nii": lambda p: save_nifti(p, np.stack([VOXELS] * 3, -1)),
    "edge.nii": lambda p: save_nifti(p, VOXELS[:, :1, :1]),
    "nowhere.nii": save_without_place,
    "plain.nii.gz": save_under_another_name,
    "short.nii": lambda p: p.write_bytes(b"\x5c\x01\0\0" + bytes(30)),
    "keys.npz": lambda p: np.savez(p, picture=np.zeros((3, 4))),
    "beyond.npz": lambda p: np.savez(p, image=np.full((3, 4), 7.0)),
    "text.npz": lambda p: np.savez(p, image=np.array([["a", "b"]])),
    "not.h5": lambda p: p.write_bytes(b"no HDF5"),
    "not.dcm": lambda p: p.write_bytes(b"no DICOM at all" * 30),
    "notes.txt": lambda p: p.write_text("no picture"),
}  # fmt: skip


def test_a_file_of_each_kind_of_badness_leaves_the_others_alone(tmp_path):
    info = dataclasses.replace(GREY, intensity="mri_percentile", orientation="RAS")
    files = []
    for number, (name, make) in enumerate(BAD.items()):
        make(tmp_path / name)
        files += [
            picture(tmp_path / f"good{number}.png", size=(9, 7 + number % 3)),
            tmp_path / name,
        ]
    files.append(picture(tmp_path / "last.png"))
    sources = [Source((file,), file.name.replace(".", "_")) for file in files]
    results = list(predict_sources(Predictor(trained(info=info, image_size=16)), info, sources))
    assert [result.source for result in results] == sources
    for file, result in zip(files, results, strict=True):
        if file.name in BAD:
            assert isinstance(result, Failure), file
            assert result.reason.startswith(f"{file}: "), result.reason
            assert "cannot be used" not in result.reason, result.reason
        else:
            assert result.labels.all()
