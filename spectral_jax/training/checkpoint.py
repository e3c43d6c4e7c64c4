"""Checkpoints of the training state, with orbax: atomic, asynchronous, the last and the best."""

import contextlib
import logging
import os
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from spectral_jax.training import distributed
from spectral_jax.training.state import TrainState

FOLDER = "checkpoints"
METRIC = "dice"
# orbax takes these for patterns, and its storage a backslash for a folder's end
UNUSABLE = "*?[]\\"


class CheckpointError(OSError):
    """A checkpoint that cannot be written, or not be read."""


def check_path(folder: epath.Path) -> None:
    """Raises CheckpointError where there can be no checkpoints."""
    path = os.fspath(folder)
    found = sorted(set(path) & set(UNUSABLE))
    if found:
        raise CheckpointError(
            f"{path}: checkpoints cannot be in a path with {' '.join(found)}; use another --workdir"
        )
    try:
        path.encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            f"{os.fsencode(path)!r}: the path of checkpoints has to be UTF-8; use another --workdir"
        ) from None
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{path} is a file, where the folder of checkpoints should be")


def _score(metrics: dict[str, float]) -> float:
    return metrics.get(METRIC, -1.0)  # saved between validations: never the best


def _reason(error: Exception) -> str:
    """An error in one line; tensorstore names long paths twice before it says what is wrong."""
    return " ".join(str(error).split())[:1000]


class Checkpoints:
    """The checkpoints in a run's folder; the two latest and the best are kept.

    A checkpoint appears under its final name only when all of it is written, so that one killed
    half-way is never restored.
    """

    def __init__(self, workdir: epath.PathLike):
        """Opens what there is; the folder of checkpoints is made with the first one.

        Raises:
          CheckpointError: for a path that checkpoints cannot have.
        """
        folder = epath.Path(workdir)
        if not folder.is_absolute():  # gs:// is; `resolve` would take it for a folder here
            folder = folder.resolve()
        self._folder = folder / FOLDER
        check_path(self._folder)
        self._manager = self._open() if self._folder.exists() else None

    def _open(self) -> ocp.CheckpointManager:
        policy = preservation_policy
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(
                    [
                        policy.LatestN(2),
                        policy.BestN(
                            get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                best_fn=_score,
            ),
        )

    def save(self, step: int, state: TrainState, dice: float | None = None) -> None:
        """Writes the state in the background; `dice` decides which checkpoint is the best."""
        metrics = {} if dice is None else {METRIC: dice}
        with self._writing():
            if self._manager is None:
                self._manager = self._open()
            if step not in self._manager.all_steps():
                self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    @property
    def last_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step() if self._manager else None

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest validation Dice; without any, the newest."""
        return (self._manager.best_step() if self._manager else None) or self.last_step

    def restore(self, step: int, like: TrainState, layout: TrainState) -> TrainState:
        """Reads a checkpoint.

        Args:
          step: of the checkpoint.
          like: a state, or shapes and types of one, with the same structure.
          layout: its shardings: where the arrays go, wherever they were when it was written.
        """
        abstract = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            like,
            layout,
        )
        assert self._manager is not None, "there are no checkpoints"
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except jax.errors.JaxRuntimeError:
            raise  # another process is gone: no fault of the checkpoint
        except Exception as error:
            raise CheckpointError(
                f"{self._folder / str(step)} cannot be read: {_reason(error)}"
            ) from error

    def restore_last(self, like: TrainState, layout: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that is whole; None if there is none at all.

        Damaged ones are named and moved to `damaged-checkpoints`, with the reason beside them.

        Raises:
          CheckpointError: if there are checkpoints, but none can be read.
        """
        damaged: dict[int, str] = {}
        steps = self._manager.all_steps() if self._manager else ()
        for step in sorted(steps, reverse=True):
            try:
                state, reason = self.restore(step, like, layout), None
            except CheckpointError as error:
                state, reason = None, str(error)
            found = [other for other in distributed.gather(reason) if other]  # by any process
            if not found:
                self._put_aside(damaged)
                return state
            damaged[step] = found[0]
            logging.getLogger(__name__).warning("%s; trying the one before", found[0])
        if damaged:
            raise CheckpointError(
                "no checkpoint can be read, none was changed:\n" + "\n".join(damaged.values())
            )
        return None

    def _put_aside(self, damaged: dict[int, str]) -> None:
        if damaged:
            aside = self._folder.parent / "damaged-checkpoints"
            if distributed.is_first():
                aside.mkdir(exist_ok=True)
                for step, reason in damaged.items():
                    # object storage has no empty folders: with a file in it, `aside` is there
                    (aside / f"{step}.txt").write_text(reason + "\n")
                    (self._folder / str(step)).rename(aside / str(step))
            distributed.wait_for_all("put damaged checkpoints aside")
            if self._manager:
                self._manager.reload()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise  # another process is gone: no fault of the folder
        except Exception as error:
            kept = "there is none yet" if self.last_step is None else f"step {self.last_step}"
            raise CheckpointError(
                f"{self._folder}: a checkpoint could not be written: "
                f"{_reason(error)}. Last good checkpoint: {kept}. Free space or "
                "allow writing there, and run the same command again to resume from it"
            ) from error

    def wait(self) -> None:
        """Returns when everything is written."""
        if self._manager:
            with self._writing():
                self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, error, *_):
        if self._manager is None:
            return
        with contextlib.suppress(Exception) if error else self._writing():
            self._manager.close()
