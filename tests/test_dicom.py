"""DICOM as hospitals send it; each situation with the public thread that it comes from."""

import copy
import importlib.util
import io
import logging
import re
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image
from raw_data import write_series

pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra: [dicom]")
highdicom = pytest.importorskip("highdicom", reason="DICOM needs the extra: [dicom]")

from pydicom.uid import generate_uid  # noqa: E402

from spectral_jax.data.volumes import DataError  # noqa: E402
from spectral_jax.inference.cases import find_sources  # noqa: E402
from spectral_jax.inference.dicom import group_series  # noqa: E402
from spectral_jax.inference.formats import file_kind, read_scan  # noqa: E402

CLASSES, COLORS = ("background", "one"), ("#000000", "#E69F00")
SHAPE = (6, 7, 5)  # of the NIfTI file that a series is written from


@pytest.fixture
def head(rng):
    """A small scan whose voxels all differ, with a place in the patient."""
    voxels = rng.permutation(np.arange(1000, 1000 + np.prod(SHAPE))).reshape(SHAPE)
    affine = np.array([[-0.9, 0, 0, 11], [0, -1.1, 0, -7], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    return nibabel.Nifti1Image(voxels.astype(np.int16), affine)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read(folder, orientation="RAS"):
    (series,), _ = group_series(files_of(folder))
    return read_scan(series, orientation=orientation)


def canonical(head):
    """Depth, height and width of the scan, upwards, forwards and to the right."""
    return np.asarray(nibabel.as_closest_canonical(head).dataobj).transpose(2, 1, 0)


def remove(*names):
    def change(index, dataset):
        for name in names:
            delattr(dataset, name)
        return dataset

    return change


def test_a_series_is_the_scan_that_its_nifti_file_is(head, tmp_path):
    write_series(head, tmp_path / "series")
    nibabel.save(head, tmp_path / "head.nii.gz")
    series = read(tmp_path / "series")
    nifti = read_scan([tmp_path / "head.nii.gz"], orientation="RAS")
    np.testing.assert_array_equal(series.image, nifti.image)
    np.testing.assert_array_equal(series.image[..., 0], canonical(head))
    assert series.spacing_mm == pytest.approx((2.5, 1.1, 0.9))


def test_sagittal_slices_are_turned_too(head, tmp_path):
    """Rows run upwards and columns forwards, from the right to the left."""
    along = nibabel.as_closest_canonical(head)
    voxels = np.asarray(along.dataobj)  # [right, forwards, upwards]
    sagittal = nibabel.Nifti1Image(
        voxels.transpose(1, 2, 0)[::-1, ::-1], np.diag([1.1, 2.5, 0.9, 1])
    )

    def change(index, dataset):
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]  # backwards, then downwards
        dataset.ImagePositionPatient = [-0.9 * index, 0, 0]
        return dataset

    # what `write_series` turns about, so that pixels [row, column] are [downwards, backwards]
    write_series(sagittal, tmp_path / "series", change=change)
    scan = read(tmp_path / "series")
    np.testing.assert_array_equal(scan.image[..., 0], voxels.transpose(2, 1, 0)[::-1, ::-1])
    assert scan.spacing_mm == pytest.approx((2.5, 1.1, 0.9))


def test_anonymised_series_give_both_files(head, tmp_path):
    """ImagingDataCommons/highdicom#99, #41."""
    names = ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"]
    names += ["StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyInstanceUID"]
    names += ["FrameOfReferenceUID", "SeriesInstanceUID", "SeriesNumber", "Manufacturer"]
    write_series(head, tmp_path / "series", change=remove(*names))
    scan = read(tmp_path / "series")
    labels = (scan.image[..., 0] % 2).astype(np.uint8)
    nifti, segmentation = scan.write_labels(labels, tmp_path / "out", CLASSES, COLORS)
    found = nibabel.as_closest_canonical(nibabel.load(nifti))
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(labels.transpose(2, 1, 0)))
    written = highdicom.seg.segread(segmentation)
    assert written.PatientID == ""
    volume = nibabel.as_closest_canonical(written.get_volume(combine_segments=True).to_nibabel())
    np.testing.assert_array_equal(np.asarray(volume.dataobj), np.asarray(found.dataobj))
    np.testing.assert_allclose(volume.affine, found.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        ("StudyDate", "DA", b"ANONYMISED"),
        ("PatientBirthDate", "DA", b"unknown "),
        ("StudyTime", "TM", b"ANON"),
        ("PatientSex", "CS", b"unknown "),
        ("PatientName", "PN", b"M\xfcller^J\xf6rg "),
        ("SpecificCharacterSet", "CS", b"ISO_IR 999"),
        ("StudyInstanceUID", "UI", b"1.2.study.x\0"),
        ("PixelSpacing", "DS", b"1.10000000000000008\\0.90000000000000002 "),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_values_that_break_the_standard_stop_no_segmentation(tag, kind, value, head, tmp_path):
    """What anonymising puts in the place of a date, and what scanners write."""

    def change(index, dataset):
        number = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(tag))
        dataset[number] = pydicom.dataelem.RawDataElement(
            number, kind, len(value), value, 0, False, True
        )
        return dataset

    write_series(head, tmp_path / "series", change=change, enforce_file_format=False)
    scan = read(tmp_path / "series")
    labels = (scan.image[..., 0] % 2).astype(np.uint8)
    _, segmentation = scan.write_labels(labels, tmp_path / "out", CLASSES, COLORS)
    assert highdicom.seg.segread(segmentation).Rows == SHAPE[1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("PixelSpacing", [0, 0]), ("ImageOrientationPatient", [0] * 6), ("ImagePositionPatient", "")],
)
def test_series_without_a_place_are_named(name, value, head, tmp_path):
    write_series(head, tmp_path / "series", change=lambda i, ds: setattr(ds, name, value) or ds)
    with pytest.raises(DataError, match=r"series/\d+\.dcm: "):
        read(tmp_path / "series")


def test_a_segmentation_that_cannot_be_leaves_the_nifti_file(head, tmp_path):
    write_series(
        head, tmp_path / "series", change=remove("SOPInstanceUID"), enforce_file_format=False
    )
    scan = read(tmp_path / "series")
    with pytest.raises(
        DataError, match=r"SOPInstanceUID.*; the NIfTI file .*out\.nii\.gz is written"
    ):
        scan.write_labels(
            np.zeros(scan.image.shape[:3], np.uint8), tmp_path / "out", CLASSES, COLORS
        )
    assert nibabel.load(tmp_path / "out.nii.gz").shape == SHAPE
    assert not (tmp_path / "out.dcm").exists()


def test_what_lies_beside_a_series_is_skipped_and_said_once(head, tmp_path, caplog):
    """dgobbi/vtk-dicom#199, rii-mango/Papaya#93, fo-dicom/fo-dicom#1712."""
    cd = tmp_path / "cd"
    write_series(head, cd / "DICOM/S1")
    for name, modality, uid in (
        ("DICOM/SR1.dcm", "SR", pydicom.uid.BasicTextSRStorage),
        ("DICOM/RS1.dcm", "RTSTRUCT", pydicom.uid.RTStructureSetStorage),
        ("DICOMDIR", "", pydicom.uid.MediaStorageDirectoryStorage),
    ):
        dataset = pydicom.Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID = uid, generate_uid()
        if modality:
            dataset.Modality, dataset.SeriesInstanceUID = modality, generate_uid()
        else:
            dataset.DirectoryRecordSequence = []
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = uid
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(cd / name, enforce_file_format=True)
    with caplog.at_level(logging.WARNING):
        (source,) = find_sources([cd], tmp_path / "out")
    assert len(source.files) == SHAPE[2]
    (said,) = caplog.messages
    assert "skipped 3 DICOM files that hold no image" in said
    assert all(f"1 {kind}" in said for kind in ("SR", "RTSTRUCT", "DICOMDIR"))
    with pytest.raises(DataError, match=r"SR1\.dcm: holds no image to segment, but SR"):
        read_scan([cd / "DICOM/SR1.dcm"])


COMPRESS = """
import sys, gdcm
for path in sys.argv[2:]:
    reader = gdcm.ImageReader()
    reader.SetFileName(path)
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, sys.argv[1])))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(path)
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
"""


@pytest.mark.parametrize(
    ("syntax", "in_gdcm"),
    [
        ("JPEGLosslessSV1", "JPEGLosslessProcess14_1"),
        ("JPEGLSLossless", "JPEGLSLossless"),
        ("RLELossless", "RLELossless"),
    ],
)
def test_compressed_pixels_are_read(syntax, in_gdcm, head, tmp_path):
    """pydicom/pylibjpeg#58, pydicom/pydicom#1061: the usual compressions of PACS."""
    pytest.importorskip("gdcm", reason="compressed DICOM needs the extra: [dicom]")
    write_series(head, tmp_path / "series")
    files = files_of(tmp_path / "series")
    # writing with gdcm is rough on its process
    subprocess.run([sys.executable, "-c", COMPRESS, in_gdcm, *map(str, files)], check=True)
    written = pydicom.dcmread(files[0], stop_before_pixels=True).file_meta.TransferSyntaxUID
    assert written == getattr(pydicom.uid, syntax)
    np.testing.assert_array_equal(read(tmp_path / "series").image[..., 0], canonical(head))


def gentle(index, bits):
    """A slice that lossy compression hardly changes."""
    rows, columns = np.mgrid[:32, :48]
    return ((rows + columns + 8 * index) * 2 ** (bits - 8)).astype(np.uint16)


def in_pillow(kind, **options):
    """Changes slices to what Pillow makes of them."""

    def compress(dataset, array):
        file = io.BytesIO()
        Image.fromarray(array).save(file, kind, **options)
        dataset.PixelData = pydicom.encaps.encapsulate([file.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"

    return compress


@pytest.mark.parametrize(
    ("syntax", "bits", "compress", "tolerance"),
    [
        ("JPEGBaseline8Bit", 8, in_pillow("JPEG", quality=95), 3),
        ("JPEG2000Lossless", 16, in_pillow("JPEG2000", no_jp2=True), 0),
        ("JPEG2000Lossless", 8, in_pillow("JPEG2000", no_jp2=True), 0),
        ("JPEG2000", 8, in_pillow("JPEG2000", no_jp2=True, irreversible=True), 3),
        ("JPEGExtended12Bit", 8, "JPEGExtendedProcess2_4", 3),
    ],
)
def test_lossy_and_wavelet_compression_is_read(syntax, bits, compress, tolerance, head, tmp_path):
    pytest.importorskip("gdcm", reason="compressed DICOM needs the extra: [dicom]")

    def change(index, dataset):
        array = gentle(index, bits).astype(np.uint8 if bits == 8 else np.uint16)
        dataset.Rows, dataset.Columns = array.shape
        dataset.BitsAllocated = 8 * array.itemsize
        dataset.BitsStored, dataset.HighBit = bits, bits - 1
        dataset.PixelData = array.tobytes()
        if callable(compress):
            compress(dataset, array)
            dataset.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
        return dataset

    write_series(head, tmp_path / "series", change=change)
    files = files_of(tmp_path / "series")
    if not callable(compress):
        subprocess.run([sys.executable, "-c", COMPRESS, compress, *map(str, files)], check=True)
    header = pydicom.dcmread(files[0], stop_before_pixels=True)
    assert header.file_meta.TransferSyntaxUID == getattr(pydicom.uid, syntax)
    scan = read(tmp_path / "series")
    assert header.file_meta.TransferSyntaxUID.is_compressed
    expected = np.stack([gentle(index, bits) for index in range(SHAPE[2])])[:, ::-1, ::-1]
    assert scan.image[..., 0].shape == expected.shape
    assert np.abs(scan.image[..., 0] - expected).max() <= tolerance


def test_jpeg_of_12_bits_names_what_reads_it(head, tmp_path):
    pytest.importorskip("gdcm", reason="compressed DICOM needs the extra: [dicom]")

    def change(index, dataset):
        array = gentle(index, 12)
        dataset.Rows, dataset.Columns = array.shape
        dataset.BitsStored, dataset.HighBit, dataset.PixelData = 12, 11, array.tobytes()
        return dataset

    write_series(head, tmp_path / "series", change=change)
    files = files_of(tmp_path / "series")
    command = [sys.executable, "-c", COMPRESS, "JPEGExtendedProcess2_4", *map(str, files)]
    subprocess.run(command, check=True)
    if importlib.util.find_spec("libjpeg"):
        expected = np.stack([gentle(index, 12) for index in range(SHAPE[2])])[:, ::-1, ::-1]
        assert np.abs(read(tmp_path / "series").image[..., 0] - expected).max() < 32
    else:
        with pytest.raises(DataError, match=r"JPEG Extended.* pip install pylibjpeg pylibjpeg-"):
            read(tmp_path / "series")


def test_other_endings_are_dicom_by_their_preamble(head, tmp_path):
    write_series(head, tmp_path / "series")
    for number, path in enumerate(files_of(tmp_path / "series")):
        path.rename(path.with_name(f"slice{number}.MR"))
    (source,) = find_sources([tmp_path / "series"], tmp_path / "out")
    np.testing.assert_array_equal(
        read_scan(source.files, orientation="RAS").image[..., 0], canonical(head)
    )


def test_screen_captures_beside_a_series_are_skipped(head, tmp_path, caplog):
    """A report of dose is no scan; where there is nothing else, captures are pictures."""
    values = {"SOPClassUID": pydicom.uid.SecondaryCaptureImageStorage, "Modality": "CT"}
    picture(head, tmp_path / "all/report", **values)
    (source,) = find_sources([tmp_path / "all"], tmp_path / "out")
    assert "report" in source.name
    write_series(head, tmp_path / "all/series")
    with caplog.at_level(logging.WARNING):
        (source,) = find_sources([tmp_path / "all"], tmp_path / "out")
    assert len(source.files) == SHAPE[2]
    assert "skipped 1 DICOM files that hold no image to segment (1 screen capture)" in caplog.text


def test_two_folders_with_one_series_number_are_two_cases(head, tmp_path):
    """rordenlab/dcm2niix#211, pydicom/deid#19: careless anonymising."""
    for patient in "ab":

        def change(index, dataset):
            dataset.SeriesInstanceUID = dataset.StudyInstanceUID = "1.2.3"
            return dataset

        write_series(head, tmp_path / f"patients/patient_{patient}", change=change)
    sources = find_sources([tmp_path / "patients"], tmp_path / "out")
    assert [source.name for source in sources] == ["patient_a", "patient_b"]
    assert {len(source.files) for source in sources} == {SHAPE[2]}


def test_a_series_in_several_folders_is_one_case(head, tmp_path):
    """As PACS export it, so many files a folder."""
    write_series(head, tmp_path / "all/0")
    (tmp_path / "all/1").mkdir()
    for path in files_of(tmp_path / "all/0")[::2]:
        path.rename(tmp_path / "all/1" / path.name)
    (source,) = find_sources([tmp_path / "all"], tmp_path / "out")
    assert read_scan(source.files).image.shape[0] == SHAPE[2]


def twice(change):
    """Writes each slice a second time, with what `change` does to it."""

    def write(index, dataset, folder):
        again = copy.deepcopy(dataset)
        change(again)
        again.save_as(folder / f"again{index}.dcm")
        return dataset

    return write


def later(dataset):
    dataset.SOPInstanceUID = generate_uid()
    dataset.AcquisitionNumber, dataset.TriggerTime = 2, 40.0


def move(index, dataset, where):
    dataset.ImagePositionPatient = where(index, list(dataset.ImagePositionPatient))
    return dataset


UNEVEN = {
    "two phases": (  # Project-MONAI/monai-deploy-app-sdk#532, rordenlab/dcm2niix#721
        lambda i, ds, folder: twice(later)(i, ds, folder),
        r"10 files at 5 places: at 30 mm lies .*dcm too; they differ in AcquisitionNumber \(",
    ),
    "copies": (
        lambda i, ds, folder: twice(lambda again: None)(i, ds, folder) if i == 2 else ds,
        r"6 files at 5 places: at 35 mm lies .*; they are copies of one image: remove one",
    ),
    "a slice missing": (  # InsightSoftwareConsortium/ITK#441, Slicer/Slicer#7339
        lambda i, ds, folder: None if i == 2 else ds,
        r"dcm: 1 missing slice between this one, at 32\.5 mm, and \d+\.dcm, at 37\.5 mm; the 4 "
        r"slices are otherwise 2\.5 mm apart",
    ),
    "uneven": (
        lambda i, ds, folder: move(i, ds, lambda i, p: [*p[:2], 30 + 2.5 * i + 0.3 * i * i]),
        r"slices are 2\.8 to 4\.6 mm apart; expected even steps",
    ),
    "a tilted gantry": (
        lambda i, ds, folder: move(i, ds, lambda i, p: [p[0], p[1] + 0.7 * i, p[2]]),
        r"each slice is shifted sideways by 0\.7 mm",
    ),
    "a localizer": (
        lambda i, ds, folder: turn_about(ds) if i == 0 else ds,
        r"ImageOrientationPatient is .*, but .* in 4 of 5 files of the series",
    ),
    "a slice of another size": (
        lambda i, ds, folder: crop(ds) if i == 3 else ds,
        r"size is \(6, 6\), but \(7, 6\) in 4 of 5 files",
    ),
    "no place": (
        lambda i, ds, folder: remove("ImagePositionPatient")(i, ds) if i == 1 else ds,
        r"one of 5 files of a series, without ImagePositionPatient",
    ),
    "mosaics": (
        lambda i, ds, folder: (
            setattr(ds, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]) or ds
        ),
        r"a mosaic, with all slices of a volume in one picture",
    ),
    "colour": (
        lambda i, ds, folder: setattr(ds, "PhotometricInterpretation", "PALETTE COLOR") or ds,
        r"one of 5 colour slices; expected grey ones",
    ),
}


def turn_about(dataset):
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    return dataset


def crop(dataset):
    dataset.PixelData = dataset.PixelData[: 2 * 6 * 6]
    dataset.Rows = 6
    return dataset


@pytest.mark.parametrize("kind", UNEVEN)
def test_what_is_no_even_stack_says_which_and_where(kind, head, tmp_path):
    change, message = UNEVEN[kind]
    folder = tmp_path / "series"
    write_series(head, folder, change=lambda index, dataset: change(index, dataset, folder))
    (series,), _ = group_series(files_of(folder))
    with pytest.raises(DataError, match=message) as error:
        read_scan(series)
    assert re.match(re.escape(str(folder)) + r"/\w+\.dcm: ", str(error.value))


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("ending", [".dcm", ""])
def test_files_without_preamble_are_read(ending, implicit, head, tmp_path):
    """pydicom/pydicom#150, qurit/rt-utils#31, dgobbi/vtk-dicom#204."""

    def change(index, dataset):
        bare = pydicom.Dataset(dataset)
        bare.save_as(
            tmp_path / f"series/IM{index:04d}{ending}",
            implicit_vr=implicit,
            little_endian=True,
            enforce_file_format=False,
        )

    write_series(head, tmp_path / "series", change=change)
    files = files_of(tmp_path / "series")
    assert files[0].read_bytes()[128:132] != b"DICM"
    assert {file_kind(path) for path in files} == {"dicom"}
    np.testing.assert_array_equal(read(tmp_path / "series").image[..., 0], canonical(head))


def picture(head, folder, **values):
    """A single file without a place, as of ultrasound."""

    def change(index, dataset):
        if index:
            return None
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            delattr(dataset, name)
        for name, value in values.items():
            setattr(dataset, name, value)
        return dataset

    write_series(head, folder, change=change)
    return files_of(folder)[0]


def test_a_palette_is_applied(head, rng, tmp_path):
    """pydicom/pydicom#205, #1405: indices are no grey values."""
    indices = rng.integers(0, 16, (7, 6)).astype(np.uint8)
    palette = rng.integers(0, 256, (16, 3)).astype(np.uint8)
    values = {"PhotometricInterpretation": "PALETTE COLOR", "PixelData": indices.tobytes()}
    for number, name in enumerate(("Red", "Green", "Blue")):
        values[f"{name}PaletteColorLookupTableDescriptor"] = [16, 0, 16]
        # 16-bit entries that repeat the 8 bits, as the standard asks
        values[f"{name}PaletteColorLookupTableData"] = (
            palette[:, number] * np.uint16(257)
        ).tobytes()
    path = picture(head, tmp_path / "us", BitsAllocated=8, BitsStored=8, HighBit=7, **values)
    scan = read_scan([path])
    np.testing.assert_array_equal(scan.image, palette[indices][None])


def test_white_as_zero_is_shown_as_viewers_do(head, rng, tmp_path):
    grey = rng.integers(0, 256, (7, 6)).astype(np.uint8)
    path = picture(
        *(head, tmp_path / "cr"),
        PhotometricInterpretation="MONOCHROME1",
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=grey.tobytes(),
    )
    np.testing.assert_array_equal(read_scan([path]).image, 255 - grey[None, ..., None])


def test_values_are_rescaled_and_whether_is_known(head, tmp_path):
    write_series(head, tmp_path / "raw", modality="CT")
    assert not read(tmp_path / "raw").rescaled

    def change(index, dataset):
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1024 - index
        return dataset

    write_series(head, tmp_path / "ct", modality="CT", change=change)
    scan = read(tmp_path / "ct")
    assert scan.rescaled
    expected = canonical(head) * 2 - 1024.0 - np.arange(SHAPE[2])[:, None, None]
    np.testing.assert_array_equal(scan.image[..., 0], expected)
