"""Images per second of the input pipeline against what the training step asks for.

python -m experiments.benchmarks.pipeline --out=DIR
"""

import importlib.util
import itertools
import json
import tempfile
import time
from functools import partial

import jax
from etils import epath

from experiments.benchmarks import step, timing
from spectral_jax.configs import quickstart, tiny
from spectral_jax.data import pipeline
from spectral_jax.data.augment import augment, to_unit_range
from spectral_jax.data.sources import Split, TrainingSlices
from spectral_jax.training import run
from spectral_jax.training.config import Config, parse_config
from spectral_jax.training.logging import FILE
from spectral_jax.training.loop import train


def run_of(quick: bool) -> Config:
    """A short training run on real slices."""
    values = tiny.get_config() if quick else quickstart.get_config()
    values.data.name = "mni152"
    values.train.epochs = values.train.validate_every = 2.0
    values.train.log_every_steps = 1 if quick else 2
    return parse_config(values)


def measure(quick: bool, repetitions: int) -> list[timing.Result]:
    size, batch_size, count = (32, 4, 4) if quick else (128, 8, 40)
    split = Split(run.prepare_data(run_of(quick).data), "train")

    def take(examples):
        batches = pipeline.training_batches(examples, batch_size=batch_size, seed=0)
        for batch in itertools.islice(batches, count):
            last = batch
        return last

    warm = TrainingSlices(split, size)
    for record in range(len(warm)):
        warm[record]
    start = time.perf_counter()
    cold = TrainingSlices(split, size)
    for record in range(len(cold)):
        cold[record]
    decoded = len(cold) / (time.perf_counter() - start)

    sides = {"ours": lambda: take(warm)}
    if importlib.util.find_spec("torch") is not None:
        from torch.utils.data import DataLoader, RandomSampler

        sampler = RandomSampler(warm, replacement=True, num_samples=count * batch_size)
        for workers in (0, 2):
            loader = DataLoader(warm, batch_size, sampler=sampler, num_workers=workers)
            sides[f"torch DataLoader, {workers} workers"] = partial(list, loader)
    compared = timing.compare(f"{count} batches of {batch_size}, {size} px", sides, repetitions)
    supply = count * batch_size / compared["seconds"]["ours"]["median"]

    batch = take(warm)
    change = jax.jit(augment)

    def changed():
        images = to_unit_range(batch["image"])
        return jax.block_until_ready(change(jax.random.key(0), images, batch["label"]))

    case = step.CASES["quick" if quick else "unet16"]
    ours = step.Ours(case)
    work = timing.compare(
        f"step of {case.name}, {case.batch} images, and augmentation of {batch_size}",
        {"step": ours.train, "augmentation": changed},
        repetitions,
    )
    seconds = work["seconds"]
    # augmentation runs inside the step, so what the step takes from the host is slower by it
    each = seconds["step"]["median"] / case.batch + seconds["augmentation"]["median"] / batch_size
    wait = data_wait(run_of(quick))
    return [
        timing.fact("first look at a slice: read, decode, resize", decoded, "images/s"),
        timing.fact("from the cache: shuffle, batch", supply, "images/s"),
        compared,
        work,
        timing.fact("supply over the step's demand", supply * each, "", "at least 3"),
        timing.fact(
            "share of a training run spent waiting for data",
            100 * wait,
            "%",
            "below 1",
        ),
    ]


def data_wait(config: Config) -> float:
    """Share of its time that a real training run waits for data, by its own log."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = epath.Path(folder)
        train(config, workdir)
        rows = [json.loads(line) for line in (workdir / FILE).read_text().splitlines()]
    # the first line is of compiling too
    steps = [row for row in rows if "data_wait_seconds" in row][1:]
    return sum(row["data_wait_seconds"] for row in steps) / sum(
        row["step_seconds"] for row in steps
    )


if __name__ == "__main__":
    timing.run("pipeline", measure)
