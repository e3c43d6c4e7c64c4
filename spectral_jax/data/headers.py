"""What a file's header promises, checked before anything is unpacked or reserved for it.

A header is a stranger's word: it may promise more than the memory holds, or point to other files.
"""

import contextlib
import math
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import h5py
import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from PIL import Image

from spectral_jax import limits

# Pillow knows more, some of which it hands to other programs
PICTURE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "JPEG2000", "PPM")
BYTES_OF_MODE = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # in memory; others 4
DEFLATE_RATIO = 1032  # the highest that there is
_PILLOW_LIMIT = threading.Lock()


@contextlib.contextmanager
def open_picture(file: Path | IO[bytes]) -> Iterator[Image.Image]:
    """Opens a picture as `PIL.Image.open` does, with our limit instead of Pillow's own.

    Raises:
      TooLargeError: if its pixels take more than the limit.
    """
    with contextlib.ExitStack() as opened:
        # not by its name: Pillow maps such a file into memory, and turns some TIFF wrongly then
        stream = opened.enter_context(file.open("rb")) if isinstance(file, Path) else file
        with _without_pillow_limit() as pillow_limit:
            image = opened.enter_context(Image.open(stream, formats=PICTURE_FORMATS))
        pixels = math.prod(image.size)
        limits.check_bytes(str(file), pixels * BYTES_OF_MODE.get(image.mode, 4))
        if pillow_limit and pixels > pillow_limit:
            with _without_pillow_limit():
                image.load()  # TIFF asks for the limit once more
        yield image


@contextlib.contextmanager
def _without_pillow_limit() -> Iterator[int | None]:
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield limit
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def check_nifti(path: Path) -> nibabel.Nifti1Header:
    """Checks the sizes in the header of a `.nii` or `.nii.gz`, and returns it as it is stored.

    Raises:
      TooLargeError: if its voxels, or what lies before them, take more than the limit.
      ValueError: for sizes that are none, and for a name that does not tell how it is compressed.
    """
    _check_compression(path)
    with ImageOpener(path) as file:
        block = file.read(540)
    is_nifti2 = 540 in (int.from_bytes(block[:4], order) for order in ("little", "big"))
    kind, length = (nibabel.Nifti2Header, 540) if is_nifti2 else (nibabel.Nifti1Header, 348)
    if len(block) < length:
        raise ValueError(f"{len(block)} bytes are less than a header")
    header = kind(block[:length], check=False)
    axes, *sizes = (int(size) for size in header["dim"])
    if not 1 <= axes <= 7 or min(sizes[:axes]) < 1:
        raise ValueError(f"the header gives {axes} axes of {sizes[: max(0, axes)]} voxels")
    # scaled voxels are float64
    itemsize = header.get_data_dtype().itemsize if header.get_slope_inter() == (None, None) else 8
    limits.check_bytes(path, math.prod(sizes[:axes]) * itemsize)
    limits.check_bytes(path, int(header["vox_offset"]))
    return header


def _check_compression(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(2)
    stem, compressed = path.name.removesuffix(path.suffix), start == b"\x1f\x8b"
    if compressed and path.suffix.lower() == ".nii":
        raise ValueError(
            f"compressed with gzip, which its name does not say; rename it {stem}.nii.gz"
        )
    if not compressed and path.suffix.lower() == ".gz" and len(start) == 2:
        raise ValueError(f"not compressed with gzip, as its name says; if sound, rename it {stem}")


def read_hdf5(path: Path, file: h5py.File, key: str) -> np.ndarray:
    """Reads a dataset of an opened HDF5 file that lies in this file.

    Raises:
      TooLargeError: if it takes more than the limit.
      ValueError: for a link, or values that lie in other files; for what is no array of numbers.
    """
    if not isinstance(file.get(key, getlink=True), h5py.HardLink):
        raise ValueError(
            f"{key!r} is a link, and links are not followed; expected the array itself"
        )
    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.hasobject:
        raise ValueError(f"{key!r} is no array of numbers")
    if dataset.is_virtual or dataset.external:
        raise ValueError(f"the values of {key!r} lie in other files, which are not read")
    if dataset.shape is None:
        raise ValueError(f"{key!r} is empty")
    limits.check_bytes(path, dataset.size * dataset.dtype.itemsize)
    _check_chunks(key, dataset)
    return np.asarray(dataset)


def _check_chunks(key: str, dataset: h5py.Dataset) -> None:
    """Refuses compressed chunks that hold more than a chunk's values, and more than the limit."""
    if dataset.compression != "gzip":
        return
    suspects: list[Any] = []
    smallest = limits.max_bytes() / DEFLATE_RATIO
    dataset.id.chunk_iter(lambda chunk: suspects.append(chunk) if chunk.size > smallest else None)
    size = math.prod(dataset.chunks) * dataset.dtype.itemsize
    for chunk in suspects:
        _, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
        if len(zlib.decompressobj().decompress(packed, size + 1)) > size:
            raise ValueError(f"a chunk of {key!r} holds more than its {size} bytes")


def check_dicom(path: Path, dataset: Any) -> None:
    """Checks the size of a DICOM image whose pixels are not unpacked yet.

    Raises:
      TooLargeError: if they take more than the limit.
    """
    names = ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel")
    values = math.prod(max(1, int(dataset.get(name) or 1)) for name in names)
    limits.check_bytes(path, values * -(-int(dataset.get("BitsAllocated") or 8) // 8))


def check_deflated(path: Path) -> None:
    """Checks the size of a DICOM file before it is read, for some are compressed as a whole.

    Raises:
      TooLargeError: if it is one that may unpack to more than the limit.
    """
    import pydicom

    try:
        meta = pydicom.filereader.read_file_meta_info(path)
    except pydicom.errors.InvalidDicomError:
        return  # nothing says how it is compressed, so it is read as if not
    if meta.get("TransferSyntaxUID") == pydicom.uid.DeflatedExplicitVRLittleEndian:
        limits.check_bytes(path, path.stat().st_size * DEFLATE_RATIO)
