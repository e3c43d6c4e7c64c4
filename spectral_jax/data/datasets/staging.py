"""Folders that appear whole or not at all, whoever else writes, whenever the process is killed."""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "incomplete."


@contextlib.contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """Yields a temporary folder in `parent`, for one process at a time.

    Processes wait for each other. What one that was killed left behind is removed; after an error,
    so is all that was made here.
    """
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        with _locked(parent):
            for leftover in parent.glob(f"{PREFIX}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=PREFIX, dir=parent) as folder:
                yield Path(folder)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # not empty: another process uses it
                path.rmdir()
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which the system lifts when a process dies."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logging.getLogger(__name__).warning("waiting: another process writes to %s", folder)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # whoever held the lock may have removed the folder
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
                    yield
                    return
        finally:
            os.close(descriptor)
