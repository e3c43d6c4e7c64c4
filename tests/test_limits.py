"""Headers are a stranger's word: what they promise is checked before memory is given to it."""

import gzip
import io
import os
import tracemalloc
import zipfile
import zlib

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image

from spectral_jax import limits
from spectral_jax.data import pictures, volumes
from spectral_jax.data.volumes import DataError
from spectral_jax.inference.formats import read_scan


@pytest.fixture
def limit(monkeypatch):
    """A limit of one MiB, in the place of 4 GiB."""
    monkeypatch.setenv(limits.VARIABLE, str(2**-10))


def picture(path):
    Image.new("L", (2000, 1000)).save(path)


def nifti(path, shape=(100, 100, 200), offset=352.0, voxels=2_000_000):
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header["vox_offset"] = offset
    content = header.binaryblock + bytes(4) + bytes(voxels)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def npz(path):
    np.savez_compressed(path, image=np.zeros((100, 100, 200), np.uint8))


def hdf5(path):
    with h5py.File(path, "w") as file:  # no chunk of it is stored
        file.create_dataset("image", (4000, 4000, 4000), np.float32, chunks=(1, 64, 64))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", picture),
        ("a.tif", lambda path: Image.new("1", (4000, 1000)).save(path, compression="group4")),
        ("a.nii", nifti),
        ("a.nii.gz", nifti),
        ("offset.nii.gz", lambda path: nifti(path, (9, 9, 9), 2e6, 2_100_000)),
        ("a.npz", npz),
        ("a.h5", hdf5),
    ],
)
def test_what_unpacks_beyond_the_limit_is_refused_before_it_is_unpacked(
    name, write, limit, tmp_path, monkeypatch
):
    write(tmp_path / name)
    tracemalloc.start()
    try:
        with pytest.raises(
            DataError, match=r"GiB unpacked; the limit for one file is 0\.0009"
        ) as e:
            read_scan([tmp_path / name])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # what the smallest of them takes
    assert name in str(e.value)
    assert f"raise the limit: {limits.VARIABLE}=" in str(e.value)
    if name not in ("a.h5", "offset.nii.gz"):  # the one has no values, the other no sound extension
        monkeypatch.setenv(limits.VARIABLE, "1")
        assert read_scan([tmp_path / name]).image.size >= 2_000_000


def test_a_deflated_dicom_file_is_measured_before_it_is_unpacked(limit, tmp_path):
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra: [dicom]")
    pytest.importorskip("highdicom", reason="DICOM needs the extra: [dicom]")
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Rows, dataset.Columns, dataset.BitsAllocated = 2000, 1000, 8
    dataset.PixelData = bytes(2_000_000)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    for name in ("ExplicitVRLittleEndian", "DeflatedExplicitVRLittleEndian"):
        dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, name)
        dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        with pytest.raises(DataError, match=r"a\.dcm: takes 0\.00\d+ GiB unpacked; the limit"):
            read_scan([tmp_path / "a.dcm"])


def test_the_limit_is_a_number(monkeypatch):
    assert limits.max_bytes() == 4 * 2**30
    for text in ("much", "-1", "nan", "0", "inf"):
        monkeypatch.setenv(limits.VARIABLE, text)
        with pytest.raises(ValueError, match=rf"{limits.VARIABLE}='{text}': expected a number"):
            limits.max_bytes()


def test_pillows_own_limit_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("L", (40, 40)).save(tmp_path / "a.png")
    assert pictures.read_image(tmp_path / "a.png").shape == (40, 40, 1)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_no_picture_is_handed_to_another_program(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **of: called.append(args))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(eps)
    with Image.open(io.BytesIO(eps)) as image:
        assert image.format == "EPS"
    with pytest.raises(DataError, match=r"a\.png: damaged, or no picture"):
        read_scan([tmp_path / "a.png"])
    assert not called


@pytest.mark.parametrize("size", [0, -8, -32768])
def test_sizes_that_are_none_are_named(size, tmp_path):
    path = tmp_path / "a.nii"
    nifti(path, (8, 9, 10), voxels=720)
    content = bytearray(path.read_bytes())
    content[42:44] = size.to_bytes(2, "little", signed=True)  # dim[1]
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.nii: .*3 axes of \[{size}, 9, 10\] voxels"):
        read_scan([path])


def test_a_chunk_of_hdf5_holds_no_more_than_a_chunk(limit, tmp_path, rng):
    values = rng.integers(0, 256, (64, 64)).astype(np.uint8)
    for packed in (zlib.compress(values.tobytes()), zlib.compress(bytes(3 * 2**20))):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            image = file.create_dataset(
                "image", (64, 64), "u1", chunks=(64, 64), compression="gzip"
            )
            image.id.write_direct_chunk((0, 0), packed)
        if len(packed) > 4000:  # noise
            np.testing.assert_array_equal(read_scan([tmp_path / "a.h5"]).image[0, ..., 0], values)
            continue
        with pytest.raises(
            DataError, match=r"a\.h5: .*a chunk of 'image' holds more than its 4096"
        ):
            read_scan([tmp_path / "a.h5"])


class Hdf5:
    """Files whose `image` lies somewhere else."""

    @staticmethod
    def external_link(file, other):
        file["image"] = h5py.ExternalLink(other, "secret")

    @staticmethod
    def soft_link_through_an_external_one(file, other):
        file["folder"] = h5py.ExternalLink(other, "/")
        file["image"] = h5py.SoftLink("/folder/secret")

    @staticmethod
    def external_storage(file, other):
        file.create_dataset("image", (5, 6), np.uint8, external=[(str(other), 0, 30)])

    @staticmethod
    def virtual(file, other):
        layout = h5py.VirtualLayout((5, 6), np.float32)
        layout[:] = h5py.VirtualSource(str(other), "secret", (5, 6))
        file.create_virtual_dataset("image", layout)

    @staticmethod
    def group(file, other):
        file.create_group("image")

    @staticmethod
    def text(file, other):
        file["image"] = "text"


@pytest.mark.parametrize("write", [vars(Hdf5)[n].__func__ for n in vars(Hdf5) if n[0] != "_"])
def test_hdf5_gives_no_access_to_other_files(write, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.full((5, 6), 0.5, np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write(file, tmp_path / "other.h5")
    if "link" in write.__name__ or write.__name__ == "virtual":
        assert h5py.File(tmp_path / "a.h5")["image"][0, 0] == 0.5
    with pytest.raises(DataError, match=r"a\.h5: damaged, or no HDF5 file: .*'image'"):
        read_scan([tmp_path / "a.h5"])


def test_pipes_and_folders_named_like_files_are_no_cases(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.nii.gz").mkdir()
    for name in ("a.png", "b.nii.gz"):
        with pytest.raises(DataError, match=rf"{name}: no regular file"):
            read_scan([tmp_path / name])


@pytest.mark.parametrize(
    "error", [RecursionError(), OverflowError(), ZeroDivisionError(), KeyError()]
)
def test_whatever_a_library_raises_names_the_file(error, tmp_path):
    with pytest.raises(DataError, match="a file: damaged"), volumes.named(tmp_path / "a file", "x"):
        raise error
    with pytest.raises(DataError, match="a file: does not fit into memory"):  # noqa: SIM117
        with volumes.named(tmp_path / "a file", "x"):
            raise MemoryError


def test_archives_are_measured_not_believed(limit, tmp_path):
    # numpy would reserve what the array's own header says
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "<f4", "fortran_order": False, "shape": (2**38,)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("image.npy", content.getvalue())
    with pytest.raises(DataError, match=r"a\.npz: (damaged, or no npz|does not fit into memory)"):
        read_scan([tmp_path / "a.npz"])
