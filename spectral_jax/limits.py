"""How much of the memory one file may take: a small file can promise, or unpack to, terabytes."""

import math
import os
import zipfile

import numpy as np

VARIABLE = "SPECTRAL_JAX_MAX_GIB"
DEFAULT_GIB = 4.0


class TooLargeError(ValueError):
    """A file that would take more memory than the limit; the message names it."""


def max_bytes() -> int:
    """The limit: 4 GiB, or what the environment variable SPECTRAL_JAX_MAX_GIB says.

    Raises:
      ValueError: if that is no positive number.
    """
    text = os.environ.get(VARIABLE, str(DEFAULT_GIB))
    try:
        gib = float(text)
        if not 0 < gib < 2**30:
            raise ValueError
    except ValueError:
        raise ValueError(f"{VARIABLE}={text!r}: expected a number of GiB, such as 16") from None
    return int(gib * 2**30)


def check_bytes(path: str | os.PathLike, count: int) -> None:
    """Refuses a file whose content takes more bytes in memory than the limit.

    Raises:
      TooLargeError: it names the file, its size and how to raise the limit.
    """
    limit = max_bytes()
    if count > limit:
        raise TooLargeError(
            f"{os.fspath(path)}: takes {count / 2**30:.3g} GiB unpacked; the limit for one file "
            f"is {limit / 2**30:g} GiB. If the file is sound, raise the limit: "
            f"{VARIABLE}={math.ceil(count / 2**30)}"
        )


def read_npz(path: str | os.PathLike, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    """Reads an array of an opened npz file, no larger than the limit and no Python object."""
    entry = archive.getinfo(f"{key}.npy")
    check_bytes(path, entry.file_size)
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
