"""Checkpoints of the training state, with orbax: atomic, asynchronous, the last and the best."""

import pathlib

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from spectral_jax.training.state import TrainState

METRIC = "dice"


def _score(metrics: dict[str, float]) -> float:
    return metrics.get(METRIC, -1.0)  # saved between validations: never the best


class Checkpoints:
    """The checkpoints in a run's folder; the two latest and the best are kept.

    A checkpoint appears under its final name only when all of it is written, so that one killed
    half-way is never restored.
    """

    def __init__(self, workdir: str | pathlib.Path):
        policy = preservation_policy
        self._manager = ocp.CheckpointManager(
            epath.Path(workdir).resolve() / "checkpoints",
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
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    @property
    def last_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the checkpoint with the highest validation Dice; without any, the newest."""
        return self._manager.best_step() or self.last_step

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
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def wait(self) -> None:
        """Returns when everything is written."""
        self._manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()
