"""Files that appear whole or not at all, here and on object storage; and JSON that is checked.

Whatever interrupts writing (a kill, a full disk, an error) leaves the file as it was before.
"""

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from etils import epath


def is_on_store(path: epath.PathLike) -> bool:
    """Whether a path is on object storage (`gs://`, `s3://`, `az://`) and not in a file system.

    >>> is_on_store("gs://bucket/run"), is_on_store("/runs/a")
    (True, False)
    """
    return "://" in os.fspath(path)


@contextmanager
def written_whole(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary file with the same ending, which becomes `path` once it is complete.

    Folders above it are made. An object of a store appears when all of it is there.
    """
    if is_on_store(path):
        target = epath.Path(path)
        with tempfile.TemporaryDirectory(prefix="spectral_jax-") as folder:
            temporary = pathlib.Path(folder) / target.name
            yield temporary
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(temporary.read_bytes())
        return
    target = pathlib.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # the end of the name only: it may be as long as the file system allows
    temporary = target.with_name(f".{os.getpid()}.{target.name[-40:]}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # else a crash of the machine may leave the name alone
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes text as UTF-8; what UTF-8 cannot hold (parts of file names) is written as escapes."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: epath.PathLike, values: Mapping[str, Any]) -> None:
    """Writes JSON; what is not a finite number becomes null, as JSON knows no NaN."""
    write_text(path, json.dumps(without_nan(values), indent=2, allow_nan=False) + "\n")


def write_arrays(path: epath.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed npz file."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_json(path: epath.PathLike, fix: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: of the file.
      fix: what to do about a damaged file; the end of the error's sentence.

    Raises:
      ValueError: for anything else than a JSON object; the message names the file.
      OSError: if it cannot be read.
    """
    try:
        values = json.loads(epath.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)} is damaged ({error}): {fix}") from error
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise ValueError(f"{os.fspath(path)} is damaged (a JSON object, not {kind}): {fix}")
    return values


def without_nan(value: Any) -> Any:
    """Numbers that are not finite as None, in dictionaries and lists of any depth.

    >>> without_nan({"hd95": [1.5, float("nan")]})
    {'hd95': [1.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
