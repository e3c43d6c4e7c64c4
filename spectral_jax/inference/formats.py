"""Users' own files: read as the data sets' files are, and written back with their geometry.

A `Scan` is what one case's files hold. Its labels are written in the format that they came in, at
the same size: class numbers as an 8-bit picture, whose palette has the colours of the classes
(instead of a JPEG, which cannot hold numbers, a PNG), as a NIfTI file with the affine and header of
the image, or as `label` in HDF5 or npz. Of a DICOM series come a NIfTI file and a DICOM
segmentation. No file is ever half-written.

Volumes are turned to the orientation that the network was trained in, and what is written is turned
back to the axes of the file.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import h5py
import nibabel
import numpy as np
from jaxtyping import Float, Num, UInt8
from PIL import Image, ImageColor

from spectral_jax.data import pictures, volumes
from spectral_jax.data.datasets.files import read_channels
from spectral_jax.data.geometry import Grid, Turn, turn_to, turned_sides
from spectral_jax.data.volumes import DataError, Spacing
from spectral_jax.files import written_whole
from spectral_jax.inference import dicom

PICTURE_ENDINGS = pictures.ENDINGS
NIFTI_ENDINGS = (".nii.gz", ".nii")
ARRAY_ENDINGS = (".h5", ".hdf5", ".npz")
DICOM_ENDINGS = (".dcm", ".dicom", ".ima")
AXES = (2, 1, 0)  # of a NIfTI file, that become depth, height and width
JPEG_ENDINGS = (".jpg", ".jpeg")
NO_ORIENTATION = "the header says nothing of the orientation: taken as LAS, as nibabel does"


@dataclasses.dataclass(frozen=True)
class Scan:
    """A case as its files hold it.

    Attributes:
      image: `[depth, height, width, channels]`, intensities as stored, or as rescaled by DICOM.
      spacing_mm: `(depth, height, width)` of a voxel, or None where unknown.
      kind: "picture", "nifti", "arrays" or "dicom".
      modality: of DICOM, such as "CT"; "" where the file does not tell.
      rescaled: of DICOM, whether the files say how stored values become those of the modality.
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
    rescaled: bool = False
    notes: tuple[str, ...] = ()


def read_scan(
    files: Sequence[pathlib.Path],
    axes: tuple[int, ...] = AXES,
    channel: int | None = None,
    orientation: str = "",
    channels: int = 1,
) -> Scan:
    """Reads a case.

    Args:
      files: one picture, NIfTI, HDF5 or npz file; one for each channel, of pictures and NIfTI; or
        those of a DICOM series.
      axes: those of a NIfTI file, once turned, that become depth, height and width.
      channel: which volume to take of a NIfTI file that holds several; None if it may not.
      orientation: what volumes are turned to: see `spectral_jax.data.geometry`; "" for none.
      channels: how many volumes a NIfTI file holds, or files there are, of which all are taken.

    Raises:
      DataError: for damaged files, and for those that are no single case; it names the file.
    """
    first = files[0]
    kind = file_kind(first)
    if kind == "picture":
        return _read_picture(files)
    if kind == "nifti":
        find_turn = partial(turn_to, orientation=orientation, axes=axes)
        return _read_nifti(files, find_turn, channel, channels)
    if kind == "arrays":
        return _read_arrays(first)
    if kind == "dicom":
        return _read_dicom(files, partial(turn_to, orientation=orientation, axes=axes))
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
    if not path.is_file():
        return ""
    # names of DICOM files are often numbers with dots
    named = bool(path.suffix.strip(".0123456789"))
    return "dicom" if dicom.starts_as_dicom(path, preamble=named) else ""


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


def _read_picture(files: Sequence[pathlib.Path]) -> Scan:
    picture, path = read_channels(files), files[0]
    resolution: dict[str, Any] = {"dpi": picture.dpi} if picture.dpi else {}

    def write_labels(labels, stem, classes, colors):
        target = _beside(stem, labels_ending(path))
        mask = Image.fromarray(labels[0])
        mask.putpalette([level for color in colors for level in ImageColor.getrgb(color)[:3]])
        with written_whole(target) as temporary:
            if target.suffix == ".gif":  # its format would put the numbers of the colours anew
                mask.save(temporary, optimize=False)
            elif target.suffix == ".png":
                mask.save(temporary, bits=8, **resolution)
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


def _read_nifti(
    files: Sequence[pathlib.Path],
    find_turn: Callable[[Grid], Turn],
    channel: int | None,
    channels: int,
) -> Scan:
    path = files[0]
    if channels > 1:
        voxels, grid, sides_mm = volumes.read_nifti_channels(files, channels)
    else:
        voxels, grid, sides_mm = volumes.read_nifti(path, channel)
        voxels = voxels[..., None]
    headers = [volumes.open_nifti(path) for path in files]
    file = headers[0].file
    header, affine, shape = file.header, file.affine, file.shape[:3]
    notes = [note for of_file in headers for note in of_file.notes]
    notes += [] if grid.known else [NO_ORIENTATION]
    notes += [volumes.BLANK] if volumes.is_blank(voxels) else []
    turn = find_turn(grid)

    def write_labels(labels, stem, classes, colors):
        target = _beside(stem, labels_ending(path))
        _save_nifti(turn.undo(labels).reshape(shape), header, affine, target)
        return [target]

    return Scan(
        turn.apply(voxels),
        turned_sides(sides_mm, turn),
        "nifti",
        write_labels,
        _nifti_probabilities(header, affine, turn),
        notes=tuple(dict.fromkeys(notes)),
    )


def _nifti_probabilities(header: Any, affine: np.ndarray, turn: Turn):
    def write_probabilities(probabilities, stem):
        target = _beside(stem, "_probabilities.nii.gz")
        volume = turn.undo(probabilities).astype(np.float32)
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


def _read_dicom(files: Sequence[pathlib.Path], find_turn: Callable[[Grid], Turn]) -> Scan:
    """A series as a volume, a single picture as it is displayed."""
    found = dicom.read_pixels(files)
    if found.grid is None:
        height, width = found.array.shape[:2]
        sides = found.sides_mm or (1.0, 1.0, 1.0)
        grid, sides_mm = (
            Grid((width, height, 1), np.diag([*sides[:0:-1], 1.0, 1.0])),
            found.sides_mm,
        )
        image, turn = found.array[None], Turn(AXES)
        write_probabilities = _write_npz_probabilities
    else:
        assert found.sides_mm is not None
        grid = found.grid
        turn = find_turn(grid)
        image, sides_mm = turn.apply(found.array)[..., None], turned_sides(found.sides_mm, turn)
        write_probabilities = _nifti_probabilities(_millimetres(), grid.affine, turn)

    def write_labels(labels, stem, classes, colors):
        in_file = turn.undo(labels)
        nifti, segmentation = _beside(stem, ".nii.gz"), _beside(stem, ".dcm")
        _save_nifti(in_file, _millimetres(), grid.affine, nifti)
        of_slices = in_file if found.grid is None else in_file[:, ::-1]
        of_slices = np.ascontiguousarray(of_slices.transpose(2, 1, 0))
        try:
            dicom.write_segmentation(found.sources, of_slices, classes, colors, segmentation)
        except DataError as error:
            raise DataError(f"{error}; the NIfTI file {nifti} is written") from error
        return [nifti, segmentation]

    return Scan(
        image,
        sides_mm,
        "dicom",
        write_labels,
        write_probabilities,
        modality=found.modality,
        rescaled=found.rescaled,
        notes=(volumes.BLANK,) if volumes.is_blank(image) else (),
    )


def _millimetres() -> nibabel.Nifti1Header:
    header = nibabel.Nifti1Header()
    header.set_xyzt_units("mm")
    return header
