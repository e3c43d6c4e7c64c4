"""People's own files: read as the data sets' files are, and written back with their geometry.

A `Scan` is what one case's files hold. Its labels are written in the format that they came in, at
the same size: class numbers as an 8-bit picture (in the place of a JPEG, which cannot hold them, a
PNG), as a NIfTI file with the affine and header of the image, or as `label` in HDF5 or npz. Of a
DICOM series come a NIfTI file and a DICOM segmentation. No file is ever half-written.

DICOM needs `pip install 'spectral_jax[dicom]'`. A series is seen as the NIfTI file that dcm2niix
makes of it: columns, rows from the last, slices along their normal.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import h5py
import nibabel
import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image, ImageColor

from spectral_jax.data import headers, pictures, volumes
from spectral_jax.data.volumes import DataError, Spacing, named
from spectral_jax.files import written_whole

PICTURE_ENDINGS = pictures.ENDINGS
NIFTI_ENDINGS = (".nii.gz", ".nii")
ARRAY_ENDINGS = (".h5", ".hdf5", ".npz")
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
AXES = (2, 1, 0)  # of a NIfTI file, that become depth, height and width
JPEG_ENDINGS = (".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Scan:
    """A case as its files hold it.

    Attributes:
      image: `[depth, height, width, channels]`, intensities as stored, or as rescaled by DICOM.
      spacing_mm: `(depth, height, width)` of a voxel, or None where unknown.
      kind: "picture", "nifti", "arrays" or "dicom".
      modality: of DICOM, such as "CT"; "" where the file does not tell.
      notes: what was read otherwise than it is stored, for a person to know.
      write_labels: writes class numbers `[depth, height, width]` to a path without an ending, in
        the classes given as names and colours, and returns the files.
      write_probabilities: writes `[depth, height, width, classes]` and returns the file.
    """

    image: Num[np.ndarray, "depth height width channels"]
    spacing_mm: Spacing | None
    kind: str
    write_labels: Callable[
        [UInt8[np.ndarray, "depth height width"], pathlib.Path, Sequence[str], Sequence[str]],
        list[pathlib.Path],
    ]
    write_probabilities: Callable[
        [Float[np.ndarray, "depth height width classes"], pathlib.Path], pathlib.Path
    ]
    modality: str = ""
    notes: tuple[str, ...] = ()


def read_scan(
    files: Sequence[pathlib.Path],
    axes: Sequence[int] = AXES,
    channel: int | None = None,
) -> Scan:
    """Reads a case.

    Args:
      files: one picture, NIfTI, HDF5 or npz file, or those of a DICOM series.
      axes: those of a NIfTI file that become depth, height and width.
      channel: which volume to take of a NIfTI file that holds several; None if it may not.

    Raises:
      DataError: for damaged files, and for those that are no single case; it names the file.
    """
    first = files[0]
    kind = file_kind(first)
    if kind == "picture":
        return _read_picture(first)
    if kind == "nifti":
        return _read_nifti(first, axes, channel)
    if kind == "arrays":
        return _read_arrays(first)
    if kind == "dicom":
        return _read_dicom(files, axes)
    known = (*PICTURE_ENDINGS, *NIFTI_ENDINGS, *ARRAY_ENDINGS, *DICOM_ENDINGS)
    raise DataError(f"{first}: expected DICOM, or a file that ends in {', '.join(known)}")


def file_kind(path: pathlib.Path) -> str:
    """Returns "picture", "nifti", "arrays", "dicom", or "" for other files.

    The ending tells; of a file without one, whether it starts as DICOM does.
    """
    endings = {
        "picture": PICTURE_ENDINGS,
        "nifti": NIFTI_ENDINGS,
        "arrays": ARRAY_ENDINGS,
        "dicom": DICOM_ENDINGS,
    }
    for kind, of_kind in endings.items():
        if path.name.lower().endswith(of_kind):
            return kind
    # names of DICOM files are often numbers with dots
    if path.is_file() and not path.suffix.strip(".0123456789"):
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return "dicom"
    return ""


def without_ending(name: str) -> str:
    """A file's name without the ending of its format.

    >>> without_ending("case_1.0.nii.gz"), without_ending("a.b.jpg")
    ('case_1.0', 'a.b')
    """
    for ending in (".npy.h5", *NIFTI_ENDINGS, *PICTURE_ENDINGS, *ARRAY_ENDINGS, *DICOM_ENDINGS):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def labels_ending(path: pathlib.Path) -> str:
    """The ending of the file that labels of this file are written to.

    >>> labels_ending(pathlib.Path("a.JPG")), labels_ending(pathlib.Path("b.nii"))
    ('.png', '.nii')
    """
    kind, name = file_kind(path), path.name.lower()
    if kind == "dicom":
        return ".nii.gz"
    if name.endswith(JPEG_ENDINGS):
        return ".png"
    known = (*NIFTI_ENDINGS, *PICTURE_ENDINGS, *ARRAY_ENDINGS)
    return next((ending for ending in known if name.endswith(ending)), path.suffix)


def _beside(stem: pathlib.Path, ending: str) -> pathlib.Path:
    return stem.with_name(stem.name + ending)  # a dot in the name is no ending


def _read_picture(path: pathlib.Path) -> Scan:
    picture = pictures.read_picture(path)
    resolution = {"dpi": picture.dpi} if picture.dpi else {}

    def write_labels(labels, stem, classes, colors):
        target = _beside(stem, labels_ending(path))
        mask = Image.fromarray(labels[0])
        with written_whole(target) as temporary:
            if target.suffix == ".gif":  # its format would put the numbers of the colours anew
                mask.save(temporary, optimize=False)
            else:
                mask.save(temporary, **resolution)
        return [target]

    return Scan(
        picture.pixels[None],
        None,
        "picture",
        write_labels,
        _write_npz_probabilities,
        notes=picture.notes,
    )


def _write_npz_probabilities(probabilities, stem):
    target = _beside(stem, "_probabilities.npz")
    with written_whole(target) as temporary:
        np.savez_compressed(temporary, probabilities=probabilities.astype(np.float32))
    return target


def _read_nifti(path: pathlib.Path, axes: Sequence[int], channel: int | None) -> Scan:
    with named(path, "NIfTI file"):
        headers.check_nifti(path)
        file = nibabel.load(path)
        header, affine, shape = file.header, file.affine, file.shape
    if channel is None and len(shape) == 4 and shape[3] > 1:
        raise DataError(f"{path}: holds {shape[3]} volumes; the network sees one")
    image, spacing_mm = volumes.read_nifti(path, axes, channel or 0)
    if image.dtype.kind not in "biuf":
        raise DataError(f"{path}: voxels of type {image.dtype}; expected numbers")

    def write_labels(labels, stem, classes, colors):
        target = _beside(stem, labels_ending(path))
        _save_nifti(labels.transpose(np.argsort(axes)), header, affine, target)
        return [target]

    return Scan(
        image[..., None],
        spacing_mm,
        "nifti",
        write_labels,
        _nifti_probabilities(header, affine, axes),
    )


def _nifti_probabilities(header: Any, affine: np.ndarray, axes: Sequence[int]):
    def write_probabilities(probabilities, stem):
        target = _beside(stem, "_probabilities.nii.gz")
        volume = probabilities.transpose(*np.argsort(axes), 3).astype(np.float32)
        _save_nifti(volume, header, affine, target)
        return target

    return write_probabilities


def _save_nifti(volume: np.ndarray, header: Any, affine: np.ndarray, target: pathlib.Path) -> None:
    """Writes a volume with the header of another, but for its type and how to show it."""
    header = header.copy()
    header.set_data_dtype(volume.dtype)
    header["cal_min"] = header["cal_max"] = 0
    kind = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    with written_whole(target) as temporary:
        nibabel.save(kind(volume, affine, header), temporary)


def _read_arrays(path: pathlib.Path) -> Scan:
    (image,) = volumes.read_arrays(path, "image")
    if image.ndim not in (2, 3, 4) or image.size == 0:
        raise DataError(
            f"{path}: `image` has the shape {image.shape}; expected a slice (height, width), or a "
            "volume (depth, height, width), which may have channels too"
        )
    if image.dtype.kind not in "biuf":
        raise DataError(f"{path}: `image` has the type {image.dtype}; expected numbers")
    shape = image.shape[:3]

    def write_labels(labels, stem, classes, colors):
        target = _beside(stem, labels_ending(path))
        labels = labels.reshape(shape)
        with written_whole(target) as temporary:
            if target.suffix == ".npz":
                np.savez_compressed(temporary, label=labels)
            else:
                with h5py.File(temporary, "w") as file:
                    file.create_dataset("label", data=labels, compression="gzip")
        return [target]

    image = image[None] if image.ndim == 2 else image
    image = image[..., None] if image.ndim == 3 else image
    return Scan(image, None, "arrays", write_labels, _write_npz_probabilities)


def group_series(files: Sequence[pathlib.Path]) -> list[list[pathlib.Path]]:
    """DICOM files by the series that they belong to; those that cannot be read stand alone."""
    groups: dict[str, list[pathlib.Path]] = {}
    for path in files:
        try:
            with _named_dicom(path):
                pydicom = _pydicom()
                headers.check_deflated(path)
                header = pydicom.dcmread(path, stop_before_pixels=True)
                series = str(header.SeriesInstanceUID)
        except DataError:
            series = str(path)  # reading it as a case will tell what is wrong
        groups.setdefault(series, []).append(path)
    return list(groups.values())


@contextmanager
def _named_dicom(path: pathlib.Path, kind: str = "DICOM image") -> Iterator[None]:
    """Turns what pydicom and highdicom raise too into a DataError."""
    with named(path, kind):
        yield


def _pydicom():
    try:
        import pydicom
        import pydicom.errors
    except ImportError:
        raise DataError("DICOM needs pydicom: pip install 'spectral_jax[dicom]'") from None
    return pydicom


def _read_dicom(files: Sequence[pathlib.Path], axes: Sequence[int]) -> Scan:
    try:
        import highdicom
    except ImportError:
        raise DataError(
            f"{files[0]}: DICOM needs highdicom: pip install 'spectral_jax[dicom]'"
        ) from None
    datasets = []
    for path in files:
        with _named_dicom(path):
            pydicom = _pydicom()
            headers.check_deflated(path)
            datasets.append(pydicom.dcmread(path))
            headers.check_dicom(path, datasets[-1])
            datasets[-1].PixelData  # noqa: B018  # a file without pixels is named
    first = datasets[0]
    if int(first.get("NumberOfFrames", 1)) > 1:
        raise DataError(f"{files[0]}: holds several frames; expected a file for each slice")
    if "ImagePositionPatient" not in first:
        return _read_dicom_picture(files, datasets)
    with _named_dicom(files[0], "series of evenly spaced slices"):
        volume = highdicom.get_volume_from_series(datasets, dtype=np.float32)
    if volume.array.ndim != 3:
        raise DataError(f"{files[0]}: colour slices; expected grey ones")
    # [columns, rows from the last, slices along their normal], as dcm2niix writes it
    along_normal = np.dot(volume.spacing_vectors()[0], _normal(first)) > 0
    as_nifti = volume.permute_spatial_axes([2, 1, 0]).flip_spatial(1)
    as_nifti = as_nifti if along_normal else as_nifti.flip_spatial(2)
    nifti = as_nifti.to_nibabel()
    header, affine = nifti.header, nifti.affine
    header.set_xyzt_units("mm")
    image = np.asarray(as_nifti.array).transpose(axes)
    zooms = [float(zoom) for zoom in header.get_zooms()]

    def write_labels(labels, stem, classes, colors):
        in_file = labels.transpose(np.argsort(axes))
        as_read = in_file if along_normal else in_file[..., ::-1]
        array = np.ascontiguousarray(as_read[:, ::-1].transpose(2, 1, 0))
        target, segmentation = _beside(stem, ".nii.gz"), _beside(stem, ".dcm")
        with _named_dicom(files[0], "source of a DICOM segmentation"):
            _save_segmentation(datasets, volume.with_array(array), classes, colors, segmentation)
        _save_nifti(in_file, header, affine, target)
        return [target, segmentation]

    return Scan(
        image[..., None],
        (zooms[axes[0]], zooms[axes[1]], zooms[axes[2]]),
        "dicom",
        write_labels,
        _nifti_probabilities(header, affine, axes),
        modality=str(first.get("Modality", "")),
    )


def _normal(dataset: Any) -> np.ndarray:
    row, column = np.array(dataset.ImageOrientationPatient, float).reshape(2, 3)
    return np.cross(row, column)


def _read_dicom_picture(files: Sequence[pathlib.Path], datasets: Sequence[Any]) -> Scan:
    """A radiograph or photograph, as it is displayed."""
    if len(files) > 1:
        raise DataError(
            f"{files[0]}: {len(files)} pictures in one series without positions; give their files "
            "one by one"
        )
    from pydicom import pixels

    (path,), (dataset,) = files, datasets
    with _named_dicom(path):
        image = pixels.pixel_array(dataset)  # colour becomes RGB
        rescaled = pixels.apply_rescale(image, dataset)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        raise DataError(f"{path}: MONOCHROME1, in which 0 is white; invert it first")
    stored = int(dataset.get("BitsStored", 0))
    if image.ndim == 2 and (stored not in (8, 16) or np.any(rescaled != image)):
        image = rescaled.astype(np.float32)  # no picture whose type tells its range
    spacing = dataset.get("PixelSpacing", dataset.get("ImagerPixelSpacing"))
    spacing_mm = None if spacing is None else (1.0, float(spacing[0]), float(spacing[1]))
    size = image.shape[:2]

    def write_labels(labels, stem, classes, colors):
        target, segmentation = _beside(stem, ".nii.gz"), _beside(stem, ".dcm")
        with _named_dicom(path, "source of a DICOM segmentation"):
            _save_segmentation(datasets, labels, classes, colors, segmentation)
        affine = np.diag([*(spacing_mm or (1.0, 1.0, 1.0))[:0:-1], 1.0, 1.0])
        _save_nifti(labels.transpose(2, 1, 0), nibabel.Nifti1Header(), affine, target)
        return [target, segmentation]

    return Scan(
        image.reshape(1, *size, -1),
        spacing_mm,
        "dicom",
        write_labels,
        _write_npz_probabilities,
        modality=str(dataset.get("Modality", "")),
    )


def _save_segmentation(
    sources: Sequence[Any],
    labels: Any,
    classes: Sequence[str],
    colors: Sequence[str],
    target: pathlib.Path,
) -> None:
    """Writes a DICOM segmentation, a segment for each class but the background."""
    import highdicom
    from pydicom.sr.coding import Code
    from pydicom.uid import generate_uid

    import spectral_jax

    # names of classes are free text, for which there are no finer codes
    body_structure = Code("123037004", "SCT", "Body structure")
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=body_structure,
            segmented_property_type=body_structure,
            display_color=highdicom.color.CIELabColor.from_rgb(*ImageColor.getrgb(color)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name="spectral_jax",
                version=spectral_jax.__version__,
                family=Code("123110", "DCM", "Artificial Intelligence"),
            ),
        )
        for number, (name, color) in enumerate(zip(classes[1:], colors[1:], strict=True), start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty segmentations, and of the sources' own values
        segmentation = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=labels,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=100,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="spectral_jax",
            manufacturer_model_name="spectral_jax",
            software_versions=spectral_jax.__version__,
            device_serial_number="0",
        )
    with written_whole(target) as temporary:
        segmentation.save_as(temporary)
