"""Where a run's numbers go: `metrics.jsonl`, TensorBoard and the terminal."""

import contextlib
import json
import math
import os
import pathlib
import sys
import tempfile
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from spectral_jax.files import is_on_store, write_text
from spectral_jax.training.distributed import is_first

FILE = "metrics.jsonl"


class RunLog:
    """Writes lines of numbers; after a restart it goes on where the checkpoint stands.

    Of several processes the first one writes; the others are silent. Objects of a store cannot be
    added to: there, lines and events are kept in a folder here, and copied with each checkpoint.
    """

    def __init__(self, workdir: epath.PathLike, first_step: int, total_steps: int):
        self._writes = is_first()
        self._workdir = epath.Path(workdir)
        self._temporary: tempfile.TemporaryDirectory | None = None
        folder = pathlib.Path(workdir)
        if is_on_store(workdir):
            self._temporary = tempfile.TemporaryDirectory(prefix="spectral_jax-")
            folder = pathlib.Path(self._temporary.name)
        self._folder = folder
        path = folder / FILE if self._writes else pathlib.Path(os.devnull)
        if self._writes and (self._workdir / FILE).exists():
            # what came after the checkpoint will come again; the last line may be half-written
            lines = (self._workdir / FILE).read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith(b"\n") and _step(line) <= first_step]
            write_text(path, b"".join(kept).decode())
        self._file = path.open("a")
        # its queue has no end, for a full one waits for a thread that a full disk has ended
        self._board = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=first_step,
            max_queue=0,
            write_to_disk=self._writes,
        )
        self._total_steps = total_steps
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self._writes and sys.stderr.isatty()),
        )

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Adds one line; `kind` is "train" or "validation"."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(f"{kind}/{key}", value, step)

    def advance(self, step: int, loss: float) -> None:
        """Moves the progress bar; without a terminal, prints about twenty lines a run."""
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if self._bar.disable and step % max(1, self._total_steps // 20) == 0:
            self.say(f"step {step} of {self._total_steps}, loss {loss:.4f}")

    def say(self, text: str) -> None:
        """Prints a line without tearing the progress bar."""
        if self._writes:
            self._bar.write(text, file=sys.stderr)

    def copy_to_store(self) -> None:
        """Brings a run's folder on object storage up to date; nothing to do for one here."""
        if self._temporary is None or not self._writes:
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
        self._board.close()
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
