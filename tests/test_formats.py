"""Files are read with what their writer needs, and labels come back as they were."""

import pathlib

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image, ImageColor
from raw_data import DICOM_PATIENT

from spectral_jax.data.pictures import read_binary_mask, read_mask
from spectral_jax.data.volumes import DataError
from spectral_jax.inference.dicom import group_series
from spectral_jax.inference.formats import file_kind, read_scan

CLASSES = ("background", "one", "two")
COLORS = ("#000000", "#E69F00", "#56B4E9")


def round_trip(file, labels, folder):
    """Writes labels as those of a file; returns the first file that is written."""
    return read_scan([file]).write_labels(labels, folder / "out.1", CLASSES, COLORS)[0]


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp", "gif"])
def test_class_numbers_survive_in_every_picture_format(ending, rng, tmp_path):
    file = tmp_path / f"a.{ending}"
    Image.fromarray(rng.integers(0, 256, (20, 31, 3)).astype(np.uint8)).save(file)
    labels = rng.integers(0, 3, (1, 20, 31)).astype(np.uint8)
    scan = read_scan([file])
    assert scan.image.shape == (1, 20, 31, 3)
    assert scan.spacing_mm is None
    written = round_trip(file, labels, tmp_path)
    assert written.name == ("out.1.png" if ending == "jpg" else f"out.1.{ending}")
    with Image.open(written) as picture:
        assert picture.size == (31, 20)
        np.testing.assert_array_equal(np.asarray(picture), labels[0])
        # and it can be seen
        shown = np.asarray(picture.convert("RGB"))
    for number, color in enumerate(COLORS):
        assert (shown[labels[0] == number] == ImageColor.getrgb(color)).all()
    np.testing.assert_array_equal(read_mask(written), labels[0])


@pytest.mark.parametrize("color", COLORS[1:])
def test_a_mask_of_two_classes_is_read_as_it_was_written(color, rng, tmp_path):
    Image.new("L", (31, 20)).save(tmp_path / "a.png")
    labels = rng.integers(0, 2, (1, 20, 31)).astype(np.uint8)
    scan = read_scan([tmp_path / "a.png"])
    (written,) = scan.write_labels(labels, tmp_path / "out", CLASSES[:2], ("#000000", color))
    np.testing.assert_array_equal(read_binary_mask(written), labels[0])


def test_resolution_is_kept(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.tif", dpi=(300, 300))
    written = round_trip(tmp_path / "a.tif", np.zeros((1, 8, 8), np.uint8), tmp_path)
    assert Image.open(written).info["dpi"] == (300, 300)


@pytest.mark.parametrize("axes", [(2, 1, 0), (2, 0, 1), (0, 1, 2)])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_keeps_header_and_place(kind, axes, rng, tmp_path):
    affine = np.array([[0, -2.0, 0.1, 5], [1.5, 0, 0, -7], [0, 0, 3.0, 11], [0, 0, 0, 1]])
    voxels = rng.normal(size=(5, 6, 7)).astype(np.float32)
    file = kind(voxels, affine)
    file.header.set_qform(np.diag([1.5, 2, 3, 1]), code=2)
    file.header["descrip"] = b"a scan"
    file.header.set_xyzt_units("mm")
    nibabel.save(file, tmp_path / "a.nii.gz")
    before = nibabel.load(tmp_path / "a.nii.gz")

    scan = read_scan([tmp_path / "a.nii.gz"], axes)
    np.testing.assert_array_equal(scan.image[..., 0], voxels.transpose(axes))
    zooms = before.header.get_zooms()
    assert scan.spacing_mm == tuple(zooms[axis] for axis in axes)
    (written,) = scan.write_labels(
        (scan.image[..., 0] > 0).astype(np.uint8), tmp_path / "out", CLASSES, COLORS
    )
    after = nibabel.load(written)
    assert type(after) is kind
    np.testing.assert_array_equal(np.asarray(after.dataobj), voxels > 0)
    np.testing.assert_array_equal(after.affine, before.affine)
    # nothing else but the type of a voxel and how to show it
    changed = {"datatype", "bitpix", "scl_slope", "scl_inter", "cal_max", "cal_min"}
    for key in set(before.header) - changed:
        np.testing.assert_array_equal(after.header[key], before.header[key], err_msg=key)

    probabilities = np.stack([scan.image[..., 0] > 0, scan.image[..., 0] <= 0], -1)
    written = scan.write_probabilities(probabilities, tmp_path / "out")
    of_file = np.asarray(nibabel.load(written).dataobj)
    np.testing.assert_array_equal(of_file[..., 0], voxels > 0)


def test_one_volume_of_several_is_taken_only_when_asked(tmp_path):
    voxels = np.arange(2 * 3 * 4 * 2, dtype=np.int16).reshape(2, 3, 4, 2)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii: holds 2 volumes; expected one"):
        read_scan([tmp_path / "a.nii"])
    scan = read_scan([tmp_path / "a.nii"], channel=1)
    np.testing.assert_array_equal(scan.image[..., 0], voxels[..., 1].T)
    (written,) = scan.write_labels(np.zeros((4, 3, 2), np.uint8), tmp_path / "out", CLASSES, COLORS)
    assert nibabel.load(written).shape == (2, 3, 4)


@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6), (4, 5, 6, 3)])
@pytest.mark.parametrize("ending", [".h5", ".npz"])
def test_arrays_come_back_in_their_shape(shape, ending, rng, tmp_path):
    image = rng.random(shape).astype(np.float32)
    file = tmp_path / f"a{ending}"
    if ending == ".npz":
        np.savez(file, image=image)
    else:
        with h5py.File(file, "w") as of:
            of["image"] = image
    scan = read_scan([file])
    assert scan.image.ndim == 4
    np.testing.assert_array_equal(scan.image.ravel(), image.ravel())
    labels = rng.integers(0, 3, scan.image.shape[:3]).astype(np.uint8)
    written = round_trip(file, labels, tmp_path)
    back = np.load(written)["label"] if ending == ".npz" else h5py.File(written)["label"][()]
    assert back.shape == shape[:3]
    np.testing.assert_array_equal(back.ravel(), labels.ravel())


def write_pages(path):
    page = Image.new("L", (8, 8))
    page.save(path, save_all=True, append_images=[page, page])


def write_h5(path, **arrays):
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file[key] = array


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.tif", write_pages, "holds 3 pages"),
        ("a.png", lambda path: path.write_bytes(b""), "damaged, or no picture"),
        ("a.nii.gz", lambda path: path.write_bytes(b"\x1f\x8b"), "damaged, or no NIfTI"),
        ("a.h5", lambda path: write_h5(path, scan=np.ones(3)), "holds .'scan'., not 'image'"),
        ("a.h5", lambda path: write_h5(path, image=np.ones(3)), "expected a slice"),
        ("a.npz", lambda path: path.write_bytes(b"PK"), "damaged, or no npz"),
        ("a.txt", lambda path: path.write_text("x"), "expected DICOM, or a file that ends in"),
        ("a.dcm", lambda path: path.write_bytes(b"x" * 200), "DICOM"),
    ],
)
def test_what_cannot_be_a_case_is_named(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message) as error:
        read_scan([tmp_path / name])
    assert name in str(error.value) or "pip install" in str(error.value)


def test_kinds_of_files(tmp_path):
    kinds = {
        "a.PNG": "picture",
        "a.nii.gz": "nifti",
        "a.npy.h5": "arrays",
        "a.DCM": "dicom",
        "a.txt": "",
        "a.gz": "",
    }
    assert {name: file_kind(pathlib.Path(name)) for name in kinds} == kinds
    (tmp_path / "1.2.840.5").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "README").write_bytes(b"text")
    assert file_kind(tmp_path / "1.2.840.5") == "dicom"
    assert file_kind(tmp_path / "README") == ""


def test_dicom_that_cannot_be_read_stands_alone(tmp_path):
    files = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    for file in files:
        file.write_bytes(b"no DICOM")
    assert group_series(files) == ([[files[0]], [files[1]]], {})


def test_a_dicom_photograph_is_seen_as_displayed(rng, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra: [dicom]")
    pytest.importorskip("highdicom", reason="DICOM needs the extra: [dicom]")
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    image = rng.integers(0, 256, (12, 10)).astype(np.uint8)
    dataset = pydicom.Dataset()
    values = {
        "SOPClassUID": pydicom.uid.DigitalXRayImageStorageForPresentation,
        "SOPInstanceUID": generate_uid(),
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "Modality": "DX",
        **DICOM_PATIENT,
        "InstanceNumber": 1,
        "Rows": 12,
        "Columns": 10,
        "PixelSpacing": [0.5, 0.25],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
    }
    for key, value in values.items():
        setattr(dataset, key, value)
    dataset.PixelData = image.tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    scan = read_scan([tmp_path / "a.dcm"])
    np.testing.assert_array_equal(scan.image, image[None, ..., None])
    assert scan.image.dtype == np.uint8
    assert scan.spacing_mm == (1.0, 0.5, 0.25)
    assert scan.modality == "DX"
    labels = (image > 127).astype(np.uint8)[None]
    nifti, segmentation = scan.write_labels(labels, tmp_path / "out", CLASSES[:2], COLORS[:2])
    np.testing.assert_array_equal(np.asarray(nibabel.load(nifti).dataobj), labels.T)
    assert nibabel.load(nifti).header.get_zooms()[:2] == (0.25, 0.5)
    stored = pydicom.dcmread(segmentation)
    np.testing.assert_array_equal(stored.pixel_array.squeeze(), labels[0])
