"""Files of raw data as arrays: NIfTI, HDF5 and npz; and how intensities are scaled.

NIfTI volumes come in the axes of their file, with their place in the patient; `geometry` turns them
to depth, height and width. Nothing is resampled, so that a prediction can be written back.

Every failure is a `DataError` that names the file.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import nibabel
import numpy as np
from jaxtyping import Num, UInt8

from spectral_jax import limits
from spectral_jax.data import geometry, headers
from spectral_jax.data.geometry import Grid, bring_to

Spacing = tuple[float, float, float]
CT_WINDOW = (-125.0, 275.0)  # Hounsfield units; soft tissue, as TransUNet uses for Synapse
MRI_PERCENTILES = (0.5, 99.5)
LABEL_TOLERANCE = 1e-3  # what scaling in a file's header may add to whole numbers
LEAST_HOUNSFIELD_RANGE = 100  # of a scan: that of water and fat alone
SIDES_TOLERANCE = 1e-2  # of a voxel's side: what rounding in headers may change

NO_SIDES = "the header gives voxels no size along some axis: 1 mm is taken"
SIDES_DIFFER = "the header's pixdim and sform give voxels other sizes: those of the sform count"
FORMS_DIFFER = "the header's sform and qform turn the scan otherwise: the sform counts"
BLANK = "there is nothing to see: all its values are one"
LFS_POINTER = "a pointer of Git LFS, whose content was not fetched: git lfs pull"


class DataError(ValueError):
    """Raw data that cannot be used; the message names the file."""


@contextmanager
def named(path: Path, kind: str) -> Iterator[None]:
    """Turns what a library raises for a damaged or missing file into a DataError."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: no regular file; expected a {kind}")
    try:
        yield
    except DataError:
        raise
    except limits.TooLargeError as error:
        raise DataError(str(error)) from error
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except MemoryError as error:
        raise DataError(f"{path}: does not fit into memory") from error
    except Exception as error:  # what libraries raise for a damaged file cannot be foreseen
        if isinstance(error, OSError) and error.errno:
            raise DataError(f"{error.filename or path}: {error.strerror}") from error
        reason = LFS_POINTER if _starts_with(path, b"version https://git-lfs") else error
        raise DataError(f"{path}: damaged, or no {kind}: {reason}") from error


def _starts_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


class Nifti(NamedTuple):
    """A NIfTI file whose voxels are not read yet.

    Attributes:
      file: of nibabel.
      volumes: how many it holds.
      grid: where its voxels lie.
      spacing_mm: of the three axes.
      notes: what the header leaves open, and how it was taken.
    """

    file: Any
    volumes: int
    grid: Grid
    spacing_mm: Spacing
    notes: tuple[str, ...] = ()


def open_nifti(path: Path) -> Nifti:
    """Reads the header of a `.nii` or `.nii.gz`; a file of two dimensions is a single slice."""
    with named(path, "NIfTI file"):
        stored = headers.check_nifti(path)
        file = nibabel.load(path)
        shape, kind = file.shape, file.get_data_dtype()
        if kind.names or kind.kind not in "biuf":
            voxel = "".join(kind.names) if kind.names else kind
            raise DataError(f"{path}: voxels of type {voxel}; expected one real number each")
        if len(shape) < 2 or min(shape) < 1:
            raise DataError(f"{path}: expected a volume, got the shape {shape}")
        width, height, depth = (*shape, 1)[:3]
        known = any(file.header.get(f"{form}_code", 1) for form in ("sform", "qform"))
        grid = Grid((width, height, depth), np.asarray(file.affine, float), bool(known))
        grid.check()
        unit = file.header.get_xyzt_units()[0] if hasattr(file.header, "get_xyzt_units") else "mm"
        to_mm = {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)
        zooms = [float(zoom) for zoom in (*file.header.get_zooms(), 1)[:3]]
        axes = len(shape[:3])
        notes = []
        if not stored["sform_code"] and not (stored["pixdim"][1 : 1 + axes] > 0).all():
            notes.append(NO_SIDES)
        if not np.allclose(zooms[:axes], grid.sides_mm[:axes], rtol=SIDES_TOLERANCE, atol=0):
            zooms[:axes] = grid.sides_mm[:axes].tolist()
            notes.append(SIDES_DIFFER)
        if _forms_differ(file.header, grid):
            notes.append(FORMS_DIFFER)
        spacing_mm = (zooms[0] * to_mm, zooms[1] * to_mm, zooms[2] * to_mm)
    return Nifti(file, int(np.prod(shape[3:])), grid, spacing_mm, tuple(notes))


def _forms_differ(header: Any, grid: Grid) -> bool:
    """Whether the two places of a header's voxels differ by more than where the first one lies."""
    try:
        forms = [header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]]
    except Exception:  # a quaternion that is none; the sform counts anyway
        return False
    if forms[0] is None or forms[1] is None:
        return False
    steps = np.linalg.norm((forms[0] - forms[1])[:3, :3], axis=0)
    ends = steps * (np.array(grid.shape) - 1)
    return bool(ends.max() > geometry.TOLERANCE * grid.sides_mm.min())


def read_nifti(
    path: Path, volume: int | None = None
) -> tuple[Num[np.ndarray, "x y z"], Grid, Spacing]:
    """Returns the voxels of a NIfTI file in its own axes, their place, and their sides in mm.

    Args:
      path: a `.nii` or `.nii.gz`.
      volume: which one to take of a file that holds several; None if it may not.
    """
    nifti = open_nifti(path)
    if volume is None and nifti.volumes > 1:
        raise DataError(f"{path}: holds {nifti.volumes} volumes; expected one")
    if volume is not None and volume >= nifti.volumes:
        raise DataError(f"{path}: no volume {volume}; it has {nifti.volumes}, from 0")
    with named(path, "NIfTI file"):
        if nifti.volumes == 1:
            voxels = np.asarray(nifti.file.dataobj)
        else:
            voxels = np.asarray(nifti.file.dataobj[..., volume])  # of the others nothing is kept
        voxels = voxels.reshape(nifti.grid.shape)
    check_finite(voxels, path)
    return voxels, nifti.grid, nifti.spacing_mm


def read_nifti_channels(
    paths: Sequence[Path], count: int
) -> tuple[Num[np.ndarray, "x y z channels"], Grid, Spacing]:
    """Returns a scan of several channels: one file that holds them all, or a file for each.

    Args:
      paths: one NIfTI file of `count` volumes, or as many files of one; in the axes of the first.
      count: of channels.
    """
    first = open_nifti(paths[0])
    if len(paths) == 1:
        if first.volumes != count:
            raise DataError(
                f"{paths[0]}: holds {first.volumes} volume{'s' * (first.volumes != 1)}; expected "
                f"{count}, one a channel, or a file for each, named "
                f"..._0000.nii.gz to ..._{count - 1:04d}.nii.gz, side by side"
            )
        with named(paths[0], "NIfTI file"):
            voxels = np.asarray(first.file.dataobj).reshape(*first.grid.shape, count)
        check_finite(voxels, paths[0])
        return voxels, first.grid, first.spacing_mm
    channels = []
    for path in paths:
        voxels, grid, _ = read_nifti(path)
        turned = bring_to(voxels, grid, first.grid)
        if turned is None:
            raise DataError(
                f"{path}: lies on another grid than {paths[0].name} of the same case; resample it "
                "onto that one"
            )
        channels.append(turned)
    return np.stack(channels, axis=-1), first.grid, first.spacing_mm


def read_nifti_label(path: Path) -> tuple[Num[np.ndarray, "x y z"], Grid]:
    """Returns class numbers in the axes of their file, as they are stored, and their place."""
    count = open_nifti(path).volumes
    if count > 1:
        raise DataError(
            f"{path}: the label holds {count} volumes; expected one of class numbers. If each is "
            "the mask of a class (one-hot), save their argmax over the last axis as whole numbers"
        )
    voxels, grid, _ = read_nifti(path)
    return voxels, grid


def read_arrays(path: Path, *keys: str) -> tuple[np.ndarray, ...]:
    """Returns arrays of an HDF5 or npz file by name."""
    if path.suffix.lower() == ".npz":
        with named(path, "npz file"), zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            _check_keys(keys, names, path)
            arrays = tuple(limits.read_npz(path, archive, key) for key in keys)
    else:
        with named(path, "HDF5 file"), h5py.File(path) as file:
            _check_keys(keys, list(file), path)
            arrays = tuple(headers.read_hdf5(path, file, key) for key in keys)
    for array in arrays:
        check_finite(array, path)
    return arrays


def _check_keys(keys: Sequence[str], names: Sequence[str], path: Path) -> None:
    missing = [key for key in keys if key not in names]
    if missing:
        raise DataError(f"{path}: holds {sorted(names)}, not {', '.join(map(repr, missing))}")


def check_finite(array: np.ndarray, path: Path) -> None:
    """Raises DataError if a value is infinite or not a number."""
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise DataError(
            f"{path}: {count} of {array.size} values are NaN or infinite; expected numbers: put "
            "that of the background in their place"
        )


def is_blank(array: np.ndarray) -> bool:
    """Whether all values are one, as of an export that failed."""
    return array.size > 1 and bool(array.min() == array.max())


def as_label(array: np.ndarray, path: Path) -> UInt8[np.ndarray, "..."]:
    """Returns class numbers, stored as whatever type, as uint8; they are whole to within 1e-3."""
    check_finite(array, path)
    whole = np.rint(array)
    wrong = (np.abs(array - whole) > LABEL_TOLERANCE) | (whole < 0) | (whole > 255)
    if wrong.any():
        values = np.unique(array[wrong])
        some = ", ".join(f"{value:g}" for value in values[:5]) + (
            ", ..." if values.size > 5 else ""
        )
        raise DataError(
            f"{path}: the label holds the values {some}; expected whole numbers, 0 to 255. Labels "
            "are resampled with the nearest neighbour, and probabilities saved as their argmax"
        )
    return whole.astype(np.uint8)


def relabel(
    label: UInt8[np.ndarray, "..."], numbers: Mapping[int, int], path: Path
) -> UInt8[np.ndarray, "..."]:
    """Renumbers classes: `numbers` gives for each old number the new one, 0 for 0."""
    table = np.zeros(256, np.uint8)
    table[list(numbers)] = list(numbers.values())
    unknown = np.setdiff1d(np.unique(label), [0, *numbers])
    if unknown.size:
        raise DataError(f"{path}: the label holds {unknown[0]}; expected 0 and {sorted(numbers)}")
    return table[label]


def scale(
    image: Num[np.ndarray, "*spatial channels"], intensity: str | Sequence[str]
) -> Num[np.ndarray, "*spatial channels"]:
    """Intensities by one rule of `INTENSITIES`, or each channel by its own."""
    if isinstance(intensity, str):
        return INTENSITIES[intensity](image)
    channels = [INTENSITIES[rule](image[..., index]) for index, rule in enumerate(intensity)]
    return np.stack(channels, axis=-1)


def check_hounsfield(image: np.ndarray, path: Path, advice: str) -> None:
    """Raises DataError unless values are those of air or fat, and more; `advice` ends the text."""
    lowest, highest = image.min(), image.max()
    if lowest < 0 and float(highest) - float(lowest) < LEAST_HOUNSFIELD_RANGE:
        raise DataError(
            f"{path}: values are {lowest:g} ... {highest:g}, as normalised ones are, so these are "
            f"no Hounsfield units; {advice}"
        )
    if lowest >= 0:
        raise DataError(
            f"{path}: no value is below 0 (the lowest is {lowest:g}), so these are no Hounsfield "
            f"units; {advice}"
        )


def unit(image: np.ndarray) -> np.ndarray:
    """Values between 0 and 1, to 16 bit."""
    return np.rint(np.clip(image, 0, 1).astype(np.float32) * np.float32(65535)).astype(np.uint16)


def ct_window(image: np.ndarray) -> np.ndarray:
    """Hounsfield units -125 ... 275, to 16 bit; what lies beyond is cut off."""
    low, high = CT_WINDOW
    image = np.clip(image, low, high).astype(np.float32)
    return unit((image - np.float32(low)) / np.float32(high - low))


def mri_percentile(image: np.ndarray) -> np.ndarray:
    """From the 0.5th to the 99.5th percentile of the volume, to 16 bit."""
    low, high = np.percentile(image, MRI_PERCENTILES).astype(np.float32)
    image = np.clip(image, low, high).astype(np.float32)
    return unit((image - low) / max(high - low, np.finfo(np.float32).tiny))


def identity(image: np.ndarray) -> np.ndarray:
    """8- and 16-bit values as they are."""
    return image


INTENSITIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    rule.__name__: rule for rule in (identity, unit, ct_window, mri_percentile)
}
