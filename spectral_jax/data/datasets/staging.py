"""Folders that appear whole or not at all, whoever else writes, whenever the process is killed."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from spectral_jax.lock import only_writer

PREFIX = "incomplete."


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Yields a temporary folder in `parent`, for one process at a time.

    Processes wait for each other. What one that was killed left behind is removed; after an error,
    so is all that was made here.
    """
    with only_writer(parent, wait=True):
        for leftover in parent.glob(f"{PREFIX}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as folder:
            yield Path(folder)
