"""The training loop: from a configuration to checkpoints in a run's folder."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from spectral_jax.data import pipeline
from spectral_jax.data.datasets.summary import read_class_share
from spectral_jax.data.sources import (
    CutPatch,
    DatasetInfo,
    Split,
    TrainingSlices,
    TrainingVolumes,
)
from spectral_jax.metrics import overlap
from spectral_jax.training import distributed, run, sharding
from spectral_jax.training.build import Built, build
from spectral_jax.training.checkpoint import Checkpoints
from spectral_jax.training.config import Config, ConfigError, DataConfig
from spectral_jax.training.distributed import Preempted, Request
from spectral_jax.training.logging import RunLog
from spectral_jax.training.objective import Objective, make_objective
from spectral_jax.training.optim import count_steps
from spectral_jax.training.start import describe, initial_state
from spectral_jax.training.state import TrainState
from spectral_jax.training.step import make_train_step, make_validation_step

VALIDATIONS = 10  # of a run whose length is given in steps
# the first steps are compiled; then so many are timed, or for so long
UNMEASURED_STEPS, PACE_STEPS, PACE_SECONDS = 2, 10, 20.0


class NonFiniteError(ArithmeticError):
    """A loss or gradient is not a number; the last checkpoint is from before.

    Attributes:
      step: where.
    """

    def __init__(self, message: str, step: int = -1):
        super().__init__(message)
        self.step = step


def train(config: Config, workdir: epath.Path) -> bool:
    """Trains to the end, from the last checkpoint if there is one.

    The same command, killed at any instant and started again, ends with the same parameters.

    Args:
      config: of the run; a folder that belongs to another is refused.
      workdir: the run's folder, made if it is not there.

    Returns:
      Whether there was anything left to do.

    Raises:
      ConfigError: for a configuration that does not fit the folder or the devices.
      DataError: for raw data that cannot be used.
      NonFiniteError: if the loss or the gradient is not finite.
      CheckpointError: for a checkpoint that cannot be written, or none that can be read.
      LockedError: if another process trains in this folder.
      Preempted: after SIGTERM or Ctrl-C.
    """
    with distributed.only_writer(workdir):
        try:
            return _train(config, workdir)
        except NonFiniteError as error:
            run.note_stop(workdir, error.step, str(error))
            raise


def _train(config: Config, workdir: epath.Path) -> bool:
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.train.batch_size, config.train.accumulate, mesh)
    folder = run.prepare_data(config.data)
    split = Split(folder, "train")
    # folds see cases at the same spacing, so that their networks can be averaged
    measured = split if config.data.fold < 0 else Split(folder, "all")
    data = dataclasses.replace(split.info, patch_spacing_mm=patch_spacing(config.data, measured))
    examples = make_examples(split, config.data, data)
    steps_per_epoch = len(examples) / config.train.batch_size
    total_steps = count_steps(config, len(examples))
    validate_every = max(1, round(config.train.validate_every * steps_per_epoch))
    if config.train.steps:
        validate_every = -(-total_steps // VALIDATIONS)
    built = build(config, split.info.labels, split.info.channels, mesh, total_steps)
    objective = make_objective(config, split.info.labels, read_class_share(folder))
    train_step = make_train_step(built.model, config, total_steps, built.layout, objective)
    validator = Validator(config, built, folder, data, objective)

    with Checkpoints(workdir) as checkpoints, distributed.StopSignal(mesh) as stop:
        run.check_run(config, workdir, data, checkpoints.last_step, len(examples))
        state, started_from = initial_state(config, data, built, checkpoints)
        first_step = int(state.step)
        if first_step == total_steps:
            run.claim_run(config, workdir, data, first_step)
            return False
        batches = pipeline.training_batches(
            examples,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            cut_patch=make_cut(config.data),
            first_step=first_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with RunLog(workdir, first_step, total_steps) as log:
            if first_step:
                log.say(f"resuming at step {first_step} of {total_steps}")
            if started_from:
                log.say(describe(started_from))
            log.say(
                f"{total_steps} steps of {config.train.batch_size} examples: "
                f"{total_steps / steps_per_epoch:.3g} times through {len(examples)}"
            )
            pace = Pace(first_step, total_steps)
            before = None  # of the step that may still be running
            clock = Clock()
            save_timer = Timer(60 * config.train.save_every_minutes)
            for step in range(first_step + 1, total_steps + 1):
                with clock.waiting():
                    batch = next(batches)
                records = batch.pop("record")
                state, metrics = train_step(state, sharding.place_batch(batch, mesh))
                if before is not None:
                    # checked one step late, so that the device never waits for the host
                    log.advance(step - 1, check_finite(*before, examples, checkpoints.last_step))
                    log.say(pace.after(step - 1))
                before = (step, records, metrics)
                if step == first_step + 1:
                    check_finite(*before, examples, checkpoints.last_step)
                    run.claim_run(config, workdir, data, first_step, started_from)
                    log.open()

                request = stop.agreed(save=distributed.is_first() and save_timer.is_over())
                validating = step % validate_every == 0 or step == total_steps
                saving = validating or step % config.train.save_every_steps == 0 or request > 0
                logging = step % config.train.log_every_steps == 0 or step == total_steps
                if saving or logging:
                    log.advance(step, check_finite(*before, examples, checkpoints.last_step))
                    log.say(pace.after(step))
                    before = None
                if logging:
                    wait_seconds, step_seconds = clock.per_step()
                    log.write(
                        "train",
                        step,
                        {
                            "epoch": step / steps_per_epoch,
                            **{key: float(value) for key, value in metrics.items()},
                            "data_wait_seconds": wait_seconds,
                            "step_seconds": step_seconds,
                            "images_per_second": config.train.batch_size / step_seconds,
                        },
                    )
                dice = None
                if validating and validator.available:
                    scores = validator.scores(state)
                    dice = scores["dice"]
                    log.write("validation", step, scores)
                    log.say(f"step {step}: validation Dice {dice:.4f}")
                if saving:
                    log.copy_to_store()
                    checkpoints.save(step, state, dice)
                    clock.restart()
                    save_timer.restart()
                if request > Request.SAVE:
                    checkpoints.wait()
                    raise Preempted(
                        f"{request.title}: saved at step {step} of {total_steps}; run the same "
                        "command again to resume",
                        request,
                    )
        checkpoints.wait()
    return True


def patch_spacing(config: DataConfig, split: Split) -> tuple[float, ...]:
    """The spacing that cases are brought to before patches are cut; () for none.

    Raises:
      ConfigError: for a spacing that is asked for where no case's is known.
    """
    if not config.patch_size or not config.resample:
        return ()
    median = split.median_spacing_mm()
    if config.spacing_mm and not median:
        raise ConfigError(
            f"config.data.spacing_mm={config.spacing_mm}: the spacing of no case of "
            f"{split.info.name!r} is known, so none can be brought to another"
        )
    return config.spacing_mm or median[-len(config.patch_size) :]


def make_examples(
    split: Split, config: DataConfig, data: DatasetInfo
) -> TrainingSlices | TrainingVolumes:
    """What one epoch goes through once: slices of one size, or volumes to cut patches from."""
    if config.patch_size:
        return TrainingVolumes(split, data.patch_spacing_mm)
    return TrainingSlices(split, config.image_size)


def make_cut(config: DataConfig) -> CutPatch | None:
    """What cuts patches; None for whole slices."""
    return CutPatch(config.patch_size, config.foreground) if config.patch_size else None


def check_finite(
    step: int,
    records: np.ndarray,
    metrics: dict[str, Any],
    examples: TrainingSlices | TrainingVolumes,
    saved: int | None,
) -> float:
    """Returns the loss of a step.

    Raises:
      NonFiniteError: naming what is not finite, and the cases of the batch.
    """
    bad = [key for key, value in metrics.items() if not np.isfinite(value)]
    if bad:
        mine = [examples.case_name(int(record)) for record in records]
        cases = ", ".join(sorted({case for of in distributed.gather(mine) for case in of}))
        kept = "there is no checkpoint yet" if saved is None else f"the checkpoint of step {saved}"
        raise NonFiniteError(
            f"step {step}: {', '.join(bad)} not finite; the batch holds {cases}. Kept: {kept}. "
            "Look at these cases; or resume in the same folder with a lower learning rate or with "
            "clipped gradients (--config.optim.learning_rate, --config.optim.clip_norm)",
            step,
        )
    return float(metrics["loss"])


class Validator:
    """Dice and loss of the validation split: of resized slices, or of a patch a volume.

    The patch lies around the middle of the foreground, or, without patches around foreground in
    training, in the volume's middle.
    """

    def __init__(
        self,
        config: Config,
        built: Built,
        folder: pathlib.Path,
        data: DatasetInfo,
        objective: Objective,
    ):
        try:
            self._split: Split | None = Split(folder, "validation")
        except ValueError:
            self._split = None
            return
        self._examples = make_examples(self._split, config.data, data)
        self._cut_patch = make_cut(config.data)
        self._batch_size = config.train.batch_size
        self._mesh = sharding.mesh_of(built.layout)
        labels = self._split.info.labels
        activation = config.model.activation_for(labels.overlapping)
        self._step = make_validation_step(
            built.model,
            built.layout,
            labels,
            activation,
            objective,
            config.objective.weight,
        )

    @property
    def available(self) -> bool:
        """Whether the data set has a validation split."""
        return self._split is not None

    def scores(self, state: TrainState) -> dict[str, float]:
        """`dice`, the mean over cases, then over foreground classes; `dice/<class>`; and `loss`.

        The loss is the mean over batches, as some of its terms are of whole batches. The last batch
        is filled up with repetitions of its last example, and weighs as many as it has others.
        """
        assert self._split is not None
        total = len(self._examples)
        sums: dict[str, np.ndarray] = {}
        loss = 0.0
        for first in range(0, total, self._batch_size):
            # the last batch is filled up with repetitions, which are not counted
            records = np.minimum(np.arange(first, first + self._batch_size), total - 1)
            mine = np.split(records, jax.process_count())[jax.process_index()]
            examples = [self._examples[int(record)] for record in mine]
            if self._cut_patch is not None:
                examples = [self._cut_patch(example) for example in examples]
            batch = {key: np.stack([e[key] for e in examples]) for key in ("image", "label")}
            found, of_batch = self._step(state.variables, sharding.place_batch(batch, self._mesh))
            counts = np.stack(found, axis=1)
            loss += float(of_batch) * min(self._batch_size, total - first) / total
            for record, of_slice in zip(records[: total - first], counts, strict=False):
                case = self._examples.case_name(int(record))
                sums[case] = sums.get(case, 0) + of_slice
        of_cases = np.stack([overlap.dice(overlap.Counts(*of_case)) for of_case in sums.values()])
        per_class = {
            name: float(np.nanmean(column))
            for name, column in zip(self._split.info.classes[1:], of_cases.T, strict=True)
            if np.isfinite(column).any()
        }
        mean = float(np.mean(list(per_class.values()))) if per_class else 0.0
        by_name = {f"dice/{name}": value for name, value in per_class.items()}
        return {"dice": mean, "loss": loss, **by_name}


class Pace:
    """Says once, from the first steps, how long the others will take."""

    def __init__(
        self, first_step: int, total_steps: int, clock: Callable[[], float] = time.perf_counter
    ):
        self._first_step, self._total_steps = first_step, total_steps
        self._clock = clock
        self._start: tuple[int, float] | None = None
        self._said = False

    def after(self, step: int) -> str:
        """What there is to say after a step; "" most of the time."""
        if self._said or step < self._first_step + UNMEASURED_STEPS:
            return ""
        if self._start is None:
            self._start = step, self._clock()
            return ""
        measured, seconds = step - self._start[0], self._clock() - self._start[1]
        left = self._total_steps - step
        if (measured < PACE_STEPS and seconds < PACE_SECONDS) or not left:
            return ""
        self._said = True
        a_step = seconds / measured
        return f"about {duration(left * a_step)} for the other {left} steps, at {a_step:.2g} s each"


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(40), duration(400), duration(40000)
    ('40 seconds', '7 minutes', '11.1 hours')
    """
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


class Timer:
    """Says once in a while that it is time for something."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Counts from now."""
        self._start = time.monotonic()

    def is_over(self) -> bool:
        """Whether the time has passed; counts anew then."""
        if time.monotonic() - self._start < self._seconds:
            return False
        self.restart()
        return True


class Clock:
    """Seconds a step, and of waiting for data in it, since the last reading."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured: something else than steps took place."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for one step's data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self._steps += 1

    def per_step(self) -> tuple[float, float]:
        """Mean seconds of waiting and of the whole step; starts again."""
        means = self._waited / self._steps, (time.perf_counter() - self._start) / self._steps
        self.restart()
        return means
