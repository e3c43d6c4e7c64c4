"""Where a run's numbers go: `metrics.jsonl`, TensorBoard and the terminal."""

import json
import os
import pathlib
import sys
from typing import Any

from tensorboardX import SummaryWriter
from tqdm import tqdm

from spectral_jax.training.distributed import is_first

FILE = "metrics.jsonl"


class RunLog:
    """Writes lines of numbers; after a restart it goes on where the checkpoint stands.

    Of several processes the first one writes; the others are silent.
    """

    def __init__(self, workdir: pathlib.Path, first_step: int, total_steps: int):
        self._writes = is_first()
        self._path = workdir / FILE if self._writes else pathlib.Path(os.devnull)
        if self._writes and self._path.exists():
            # what came after the checkpoint will come again; the last line may be half-written
            lines = self._path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and _step(line) <= first_step]
            replacement = self._path.with_suffix(".new")
            replacement.write_text("".join(kept))
            replacement.rename(self._path)
        self._file = self._path.open("a")
        # its queue has no end, for a full one waits for a thread that a full disk has ended
        self._board = SummaryWriter(
            str(workdir / "tensorboard"),
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

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        self._board.close()
        self._file.close()


def _step(line: str) -> int:
    return json.loads(line)["step"]
