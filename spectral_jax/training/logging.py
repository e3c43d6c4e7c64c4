"""Where a run's numbers go: `metrics.jsonl`, TensorBoard and the terminal."""

import contextlib
import json
import math
import os
import pathlib
import sys
import tempfile
from typing import Any, TextIO

from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from spectral_jax.files import is_on_store, written_whole
from spectral_jax.training.distributed import is_first

FILE = "metrics.jsonl"


class RunLog:
    """Writes lines of numbers; after a restart it resumes where the checkpoint stands.

    Nothing is written before `open`, so that a run that fails at once leaves no trace.
    Of several processes the first one writes; the others are silent. Objects of a store cannot be
    added to: there, lines and events are kept in a folder here, and copied with each checkpoint.
    """

    def __init__(self, workdir: epath.PathLike, first_step: int, total_steps: int):
        self._writes = is_first()
        self._first_step = first_step
        self._workdir = epath.Path(workdir)
        self._temporary: tempfile.TemporaryDirectory | None = None
        folder = pathlib.Path(workdir)
        if is_on_store(workdir):
            self._temporary = tempfile.TemporaryDirectory(prefix="spectral_jax-")
            folder = pathlib.Path(self._temporary.name)
        self._folder = folder
        self._file: TextIO | None = None
        self._board: SummaryWriter | None = None
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self._writes and sys.stderr.isatty()),
        )

    def open(self) -> None:
        """Makes the files, or takes away from them what came after the checkpoint."""
        if self._file is not None:
            return
        path = self._folder / FILE if self._writes else pathlib.Path(os.devnull)
        if self._writes and (self._workdir / FILE).exists():
            # it will come again; the last line may be half-written; there may be a million
            with (self._workdir / FILE).open("rb") as lines, written_whole(path) as new:
                whole = (line for line in lines if line.endswith(b"\n"))
                with new.open("wb") as file:
                    file.writelines(line for line in whole if _step(line) <= self._first_step)
        self._file = path.open("a", encoding="utf-8")
        # its queue has no end, for a full one waits for a thread that a full disk has ended
        self._board = SummaryWriter(
            str(self._folder / "tensorboard"),
            purge_step=self._first_step,
            max_queue=0,
            write_to_disk=self._writes,
        )

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds one line; `kind` is "train" or "validation"."""
        assert self._file is not None, "open comes first"
        assert self._board is not None
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"{self._folder / FILE} cannot be written: {error.strerror}. Free space or allow "
                "writing there, and run the same command again to resume from the last checkpoint"
            ) from error
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)

    def advance(self, step: int, loss: float) -> None:
        """Moves the progress bar; without a terminal, prints about twenty lines a run."""
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if self._bar.disable and step % max(1, self._total_steps // 20) == 0:
            self.say(f"step {step} of {self._total_steps}, loss {loss:.4f}")

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress bar; nothing for ""."""
        if self._writes and text:
            self._bar.write(text, file=sys.stderr)

    def copy_to_store(self) -> None:
        """Brings a run's folder on object storage up to date; nothing to do for one here."""
        if self._temporary is None or self._board is None or not self._writes:
            return
        self._board.flush()
        for file in self._folder.rglob("*"):
            if file.is_file():
                copy = self._workdir / str(file.relative_to(self._folder))
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        self._bar.close()
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            self._file.close()
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self.copy_to_store()
        if self._temporary is not None:
            self._temporary.cleanup()


def _step(line: bytes) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # damaged: left out
