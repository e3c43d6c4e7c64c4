"""Files of raw data as arrays: NIfTI, HDF5 and npz; and how intensities are scaled.

Volumes are `[depth, height, width]`, which are the last, the second and the first axis of a NIfTI
file: the order in which SimpleITK returns them. Nothing is resampled or turned, so that a voxel
keeps its place and a prediction can be written back.

Every failure is a `DataError` that names the file.
"""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import nibabel
import numpy as np
from jaxtyping import Num, UInt8

from spectral_jax import limits
from spectral_jax.data import headers

Spacing = tuple[float, float, float]
CT_WINDOW = (-125.0, 275.0)  # Hounsfield units; soft tissue, as TransUNet uses for Synapse
MRI_PERCENTILES = (0.5, 99.5)


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
        raise DataError(f"{path}: damaged, or no {kind}: {error}") from error


def read_nifti(
    path: Path, axes: Sequence[int] = (2, 1, 0), channel: int = 0
) -> tuple[Num[np.ndarray, "depth height width"], Spacing]:
    """Returns a volume and its spacing in mm.

    Args:
      path: a `.nii` or `.nii.gz`.
      axes: the file's axes that become depth, height and width.
      channel: which volume to take of a file that holds several.
    """
    with named(path, "NIfTI file"):
        headers.check_nifti(path)
        file = nibabel.load(path)
        volume = np.asarray(file.dataobj)
        zooms = file.header.get_zooms()
    if volume.ndim == 4:
        if channel >= volume.shape[3]:
            raise DataError(f"{path}: no channel {channel}; it has {volume.shape[3]}, from 0")
        volume = volume[..., channel]
    if volume.ndim != 3:
        raise DataError(f"{path}: expected a volume, got the shape {volume.shape}")
    check_finite(volume, path)
    depth, height, width = (float(zooms[axis]) for axis in axes)
    return volume.transpose(axes), (depth, height, width)


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
        raise DataError(f"{path}: {count} of {array.size} values are NaN or infinite")


def as_label(array: np.ndarray, path: Path) -> UInt8[np.ndarray, "..."]:
    """Returns class numbers, stored as whatever type, as uint8."""
    check_finite(array, path)
    with np.errstate(invalid="ignore"):  # what does not fit is found in the next line
        label = array.astype(np.uint8)
    if (label != array).any():
        wrong = array[label != array].flat[0]
        raise DataError(
            f"{path}: the label holds the value {wrong}; expected whole numbers, 0 to 255"
        )
    return label


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
