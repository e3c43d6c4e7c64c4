"""`python -m experiments.predict` on real files of every format."""

import csv
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image
from raw_data import link, write_series

from spectral_jax.configs import hippocampus_3d, tiny
from spectral_jax.inference.trained import restore
from spectral_jax.training.config import parse_config
from spectral_jax.training.loop import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOME_FAILED = 4


@pytest.fixture(scope="module")
def predict(tmp_path_factory):
    """Runs the command and returns its status, its errors, and the rows of its summary."""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}

    def run_command(workdir, inputs, output, *flags, command="predict"):
        arguments = [f"--workdir={workdir}", *flags]
        if command == "predict":
            arguments += [f"--input={','.join(map(str, inputs))}", f"--output={output}"]
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{command}", *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        file = output / "summary.csv"
        rows = list(csv.DictReader(file.open())) if file.exists() else []
        return done.returncode, done.stderr, rows

    return run_command


def train_briefly(values, workdir):
    values.train.batch_size = 8
    values.train.epochs = 2.0
    train(parse_config(values), workdir)
    return workdir


@pytest.fixture(scope="module")
def hippocampus(shared_data, tmp_path_factory):
    """A run on nine volumes, and the folder of their images."""
    root = tmp_path_factory.mktemp("hippocampus")
    raw = link(
        shared_data / "Task04_Hippocampus",
        root / "raw",
        r"dataset\.json|(?:images|labels)Tr/hippocampus_0[0-2].*",
    )
    values = tiny.get_config()
    values.data.name = "decathlon"
    values.data.root = str(raw)
    values.data.data_dir = str(root / "prepared")
    values.data.image_size = 32
    values.train.epochs = 0.2
    values.optim.learning_rate = 0.01
    values.train.batch_size = 8
    train(parse_config(values), root / "run")
    return root / "run", raw / "imagesTr"


@pytest.fixture(scope="module")
def skin(shared_data, tmp_path_factory):
    """A run on colour pictures."""
    root = tmp_path_factory.mktemp("skin")
    values = tiny.get_config()
    values.data.name = "drive"
    values.data.root = str(shared_data / "DRIVE")
    values.data.data_dir = str(root / "prepared")
    values.data.image_size = 32
    return train_briefly(values, root / "run")


@pytest.mark.slow
def test_nifti_keeps_its_geometry_and_scores_as_evaluate_says(hippocampus, predict, tmp_path):
    workdir, images = hippocampus
    code, errors, _ = predict(workdir, [], tmp_path, "--checkpoint=last", command="evaluate")
    assert code == 0, errors
    scores = json.loads((workdir / "evaluation/decathlon-test.json").read_text())["cases"]
    cases = {row["case"] for row in scores}
    files = [images / f"{case}.nii.gz" for case in cases]
    flags = ("--checkpoint=last", "--overlays", "--probabilities")
    code, errors, rows = predict(workdir, files, tmp_path / "out", *flags)
    assert code == 0, errors
    assert [row["input"] for row in rows] == [str(file) for file in files]
    for file, row in zip(files, rows, strict=True):
        before, after = nibabel.load(file), nibabel.load(tmp_path / "out" / file.name)
        assert after.shape == before.shape
        assert after.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(after.affine, before.affine)
        assert after.header.get_zooms() == before.header.get_zooms()
        for key in ("qform_code", "sform_code", "xyzt_units", "srow_x", "pixdim", "descrip"):
            np.testing.assert_array_equal(after.header[key], before.header[key], err_msg=key)
        labels = np.asarray(after.dataobj)
        stem = file.name.removesuffix(".nii.gz")
        likely = nibabel.load(tmp_path / "out" / f"{stem}_probabilities.nii.gz")
        np.testing.assert_array_equal(np.asarray(likely.dataobj).argmax(-1), labels)
        assert Image.open(tmp_path / "out" / f"{stem}_overlay.png").mode == "RGB"
        truth = np.asarray(nibabel.load(images.parent / "labelsTr" / file.name).dataobj)
        voxel_ml = np.prod(before.header.get_zooms()) / 1000
        for number, name in enumerate(("Anterior", "Posterior"), start=1):
            ours, theirs = labels == number, truth == number
            (dice,) = (
                score["dice"] for score in scores if (score["case"], score["class"]) == (stem, name)
            )
            if dice is not None:
                assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) == dice
            assert row["unit"] == "ml"
            assert float(row[name]) == pytest.approx(ours.sum() * voxel_ml, rel=1e-5)
    assert any(score["dice"] for score in scores)  # the check above is of more than zeros


@pytest.mark.slow
def test_pictures_of_each_format_come_back_at_their_size(skin, predict, shared_data, tmp_path):
    jpegs = (shared_data / "ISIC-2017/ISIC-2017_Validation_Data").glob("*.jpg")
    largest = max(jpegs, key=lambda path: np.prod(Image.open(path).size))
    files = [
        largest,
        shared_data / "DRIVE/test/images/01_test.tif",
        shared_data / "DRIVE/test/1st_manual/02_manual1.gif",
        next((shared_data / "PH2").rglob("*_Dermoscopic_Image/*.bmp")),
        next((shared_data / "DSB2018").rglob("images/*.png")),
    ]
    code, errors, rows = predict(skin, files, tmp_path, "--tta")
    assert code == 0, errors
    for file, row in zip(files, rows, strict=True):
        ending = ".png" if file.suffix == ".jpg" else file.suffix
        with Image.open(tmp_path / f"{file.stem}{ending}") as mask:
            assert mask.size == Image.open(file).size
            labels = np.asarray(mask)
        assert set(np.unique(labels)) <= {0, 1}
        assert row["unit"] == "px"
        assert float(row["vessel"]) == pytest.approx(labels.sum(), rel=1e-5)


@pytest.mark.slow
def test_names_and_pictures_as_people_have_them(skin, predict, shared_data, tmp_path):
    """Commas, accents, hidden folders, capitals, two formats, EXIF: see tests/test_pictures.py."""
    pictures = tmp_path / "pictures"
    (pictures / ".ipynb_checkpoints").mkdir(parents=True)
    with Image.open(shared_data / "DRIVE/test/images/01_test.tif") as whole:
        crop = whole.crop((200, 200, 290, 270))
    exif = Image.Exif()
    exif[274] = 6
    for name in ("a.png", "a.jpg", "comma, name.PNG", ".ipynb_checkpoints/a-checkpoint.png"):
        crop.save(pictures / name)
    crop.save(pictures / "La\u0308sion.jpg", exif=exif)
    with (pictures / "UPPER.NPZ").open("wb") as file:
        np.savez(file, image=np.asarray(crop) / 255)
    nibabel.save(
        nibabel.Nifti1Image(np.asarray(crop.convert("L"))[..., None], np.eye(4)),
        tmp_path / "b.nii.gz",
    )
    (tmp_path / "b.nii.gz").rename(pictures / "B.NII.GZ")
    code, errors, rows = predict(skin, [pictures], tmp_path / "out")
    assert code == 0, errors
    assert sorted(row["output"].removeprefix(f"{tmp_path}/out/") for row in rows) == [
        *("B.nii.gz", "La\u0308sion.png", "UPPER.npz", "a_jpg.png", "a_png.png", "comma, name.png"),
    ]
    assert Image.open(tmp_path / "out/La\u0308sion.png").size == crop.size[::-1]

    given = [pictures / "comma, name.PNG", pictures / "L\u00e4sion.jpg"]
    code, errors, rows = predict(skin, given, tmp_path / "again")
    assert code == 0, errors
    assert [row["error"] for row in rows] == ["", ""]


@pytest.mark.slow
def test_large_pictures_in_tiles(skin, predict, shared_data, tmp_path):
    with Image.open(shared_data / "DRIVE/test/images/01_test.tif") as whole:
        whole.crop((200, 200, 290, 270)).save(tmp_path / "crop.png")
    (tmp_path / "whole").mkdir()
    for flags, folder in (((), "whole"), (("--tiles",), "tiles")):
        code, errors, _ = predict(
            skin, [tmp_path / "crop.png"], tmp_path / folder, "--probabilities", *flags
        )
        assert code == 0, errors
    whole, tiles = (
        np.load(tmp_path / folder / "crop_probabilities.npz")["probabilities"]
        for folder in ("whole", "tiles")
    )
    assert whole.shape == tiles.shape == (1, 70, 90, 2)
    np.testing.assert_allclose(tiles.sum(-1), 1, atol=1e-5)
    assert np.abs(whole - tiles).max() > 1e-3  # seen at another scale


@pytest.mark.slow
def test_damaged_files_are_named_and_the_others_done(skin, predict, shared_data, tmp_path):
    files = sorted((shared_data / "Kvasir-SEG_256/images").iterdir())[:200]
    pictures = tmp_path / "pictures"
    for number, file in enumerate(files):
        folder = pictures / f"part{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)
    damaged = [pictures / f"part{n % 2}" / files[n].name for n in (0, 99, 199)]
    for path, content in zip(
        damaged, (b"", b"no picture", files[199].read_bytes()[:900]), strict=True
    ):
        path.write_bytes(content)
    code, errors, rows = predict(skin, [pictures], tmp_path / "out")
    assert code == SOME_FAILED
    assert len(rows) == 200
    assert [row["input"] for row in rows if row["error"]] == sorted(map(str, damaged))
    for path in damaged:
        assert errors.count(str(path)) >= 1
    assert len(list((tmp_path / "out").rglob("*.png"))) == 197
    assert not [path for path in (tmp_path / "out").rglob(".*")]
    assert (tmp_path / "out/part1" / files[1].with_suffix(".png").name).exists()


def nifti_header(shape, kind=np.uint8):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


@pytest.mark.slow
def test_no_bad_file_ends_a_batch(hippocampus, predict, tmp_path):
    workdir, images = hippocampus
    good = sorted(images.iterdir())[:3]
    folder = tmp_path / "scans"
    folder.mkdir()
    voxels = np.full((8, 8, 8), 7, np.uint8)
    overlong = folder / ("n" * 251 + ".nii")  # its probabilities' name would be longer
    undecodable = folder / os.fsdecode(b"caf\xe9.nii")
    for path in (overlong, undecodable):
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    contents = {
        "negative.nii": nifti_header((-8, 9, 10)) + bytes(720),
        "absurd.nii": nifti_header((32767,) * 6) + bytes(720),
        "bomb.nii.gz": gzip.compress(nifti_header((30000, 30000, 5)) + bytes(100_000)),
        "short.nii.gz": gzip.compress(nifti_header((300, 300, 300)) + bytes(100_000)),
        "text.nii": b"no volume",
        "nested.npz": b"PK" + bytes(100),
        "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + 2 * b"\x7f\xff\xff\xff" + b"\x08\0\0\0\0",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    bad = [overlong, folder / "pipe.png", tmp_path / "absent.png", Path("x" * 300 + ".nii")]
    bad += [folder / name for name in contents]
    inputs = [good[0], bad[0], undecodable, *bad[1:6], good[1], *bad[6:], good[2]]
    flags = ("--checkpoint=last", "--probabilities")
    code, errors, rows = predict(workdir, inputs, tmp_path / "out", *flags)
    assert code == SOME_FAILED, errors
    assert "Traceback" not in errors
    assert len(rows) == len(inputs)
    for path, row in zip(inputs, rows, strict=True):
        shown = str(path).replace(os.fsdecode(b"\xe9"), "\\udce9")
        assert row["input"] == shown
        assert bool(row["error"]) == (path in bad), row
        if path in bad:
            assert f"not done: {shown}" in errors
        else:
            assert (tmp_path / "out" / path.name).is_file()
    assert not [path for path in (tmp_path / "out").rglob(".*")]


@pytest.mark.slow
def test_hdf5_and_npz(hippocampus, predict, shared_data, tmp_path):
    slices = sorted((shared_data / "ACDC/data/slices").glob("*.h5"))
    volume = next((shared_data / "ACDC/data").glob("*.h5"))
    atrium = next((shared_data / "LA2018").rglob("*.h5"))  # not in 0 ... 1
    with h5py.File(slices[0]) as file:
        image = file["image"][()]
    np.savez(tmp_path / "one.npz", image=image)
    files = [slices[0], volume, tmp_path / "one.npz", atrium]
    code, errors, rows = predict(hippocampus[0], files, tmp_path / "out")
    assert code == SOME_FAILED
    assert "expected 0 ... 1" in errors
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]
    for file in files[:2]:
        with h5py.File(file) as before, h5py.File(tmp_path / "out" / file.name) as after:
            assert after["label"].shape == before["image"].shape
    labels = np.load(tmp_path / "out/one.npz")["label"]
    with h5py.File(tmp_path / "out" / slices[0].name) as file:
        np.testing.assert_array_equal(labels, file["label"])


@pytest.mark.slow
def test_what_cannot_fit_is_refused_by_name(hippocampus, predict, shared_data, tmp_path):
    colour = shared_data / "DRIVE/test/images/01_test.tif"
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    code, errors, _ = predict(hippocampus[0], [colour, text], tmp_path / "out")
    assert code == SOME_FAILED
    assert f"{colour}: 3 channels with colour in them, but 1 expected" in errors
    assert f"{text}: expected DICOM, or a file that ends in .png" in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.csv"]
    code, errors, _ = predict(hippocampus[0], [tmp_path / "nothing"], tmp_path / "out")
    assert code == 2
    assert "no such file or folder" in errors


@pytest.mark.slow
def test_volumes_by_patches(shared_data, predict, tmp_path):
    values = hippocampus_3d.get_config()
    values.data.root = str(
        link(
            shared_data / "Task04_Hippocampus",
            tmp_path / "raw",
            r"dataset\.json|(?:images|labels)Tr/hippocampus_0[0-2].*",
        )
    )
    values.data.data_dir = str(tmp_path / "prepared")
    values.data.patch_size = (16, 16, 16)
    values.model.unet.widths = (4, 8)
    workdir = train_briefly(values, tmp_path / "run")
    file = next((tmp_path / "raw/imagesTr").iterdir())
    code, errors, _ = predict(workdir, [file], tmp_path / "out")
    assert code == 0, errors
    assert nibabel.load(tmp_path / "out" / file.name).shape == nibabel.load(file).shape
    assert restore(workdir).data.intensity == "mri_percentile"


@pytest.mark.slow
def test_a_dicom_series_becomes_nifti_and_a_segmentation(hippocampus, predict, tmp_path):
    workdir, images = hippocampus
    file = sorted(images.iterdir())[0]
    voxels = write_series(file, tmp_path / "scans/patient1/t1")
    write_series(file, tmp_path / "scans/patient2", modality="CT")
    code, errors, rows = predict(
        workdir, [tmp_path / "scans"], tmp_path / "out", "--checkpoint=last"
    )
    assert code == SOME_FAILED
    assert "of modality CT, but the network was trained on MRI (" in errors
    assert [bool(row["error"]) for row in rows] == [False, True]
    result = nibabel.load(tmp_path / "out/patient1/t1.nii.gz")
    labels = np.asarray(result.dataobj)
    assert labels.any()
    # first voxel of a file of dcm2niix: first column, last row, first slice
    spacing = result.header.get_zooms()
    last_row = 7.0 + spacing[1] * (voxels.shape[1] - 1)
    np.testing.assert_allclose(result.affine[:3, 3], [11.0, -last_row, 30.0], atol=1e-4)
    np.testing.assert_allclose(np.diag(result.affine)[:3], np.multiply(spacing, [-1, 1, 1]))

    # the same voxels as a NIfTI file give the same labels
    as_nifti = voxels.transpose(2, 1, 0)[:, ::-1]
    nibabel.save(nibabel.Nifti1Image(as_nifti, result.affine), tmp_path / "same.nii.gz")
    code, errors, _ = predict(
        workdir, [tmp_path / "same.nii.gz"], tmp_path / "out", "--checkpoint=last"
    )
    assert code == 0, errors
    same = nibabel.load(tmp_path / "out/same.nii.gz")
    np.testing.assert_array_equal(np.asarray(same.dataobj), labels)

    # and the segmentation puts them where they are in the patient
    import highdicom

    segmentation = highdicom.seg.segread(tmp_path / "out/patient1/t1.dcm")
    names = [segment.SegmentLabel for segment in segmentation.SegmentSequence]
    assert names == ["Anterior", "Posterior"]
    volume = segmentation.get_volume(combine_segments=True)
    found = volume.to_nibabel()
    ours = np.argwhere(labels)
    theirs = np.argwhere(np.asarray(found.dataobj))
    places = [
        sorted(np.round(nibabel.affines.apply_affine(of.affine, index), 3).tolist())
        for of, index in ((result, ours), (found, theirs))
    ]
    np.testing.assert_allclose(*places, atol=2e-3)
