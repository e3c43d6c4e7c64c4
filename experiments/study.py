"""Trains every arm of a study on every seed, measures all of them, and writes one page.

    python -m experiments.study --study=experiments/studies/hippocampus.py --small \
        --raw=decathlon=Task04_Hippocampus --workdir=studies/hippocampus

Arms differ in their loss; everything else, seeds included, they share. The same command goes on
where it was interrupted and skips what is done. A run that fails is named at the end, and the
others go on.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import multiprocessing
import os
import pathlib
import platform
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags as absl_flags
from tqdm import tqdm

from experiments import flags
from experiments.studies.design import Study
from spectral_jax import allocator
from spectral_jax.data.datasets.summary import PREPARE_AGAIN, SUMMARY_FILE
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.analysis import analyse_errors
from spectral_jax.evaluation.calibrate import measure_calibration
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.evaluation.explain import measure_explanations
from spectral_jax.evaluation.interactions import measure_interactions
from spectral_jax.evaluation.robustness import measure_robustness
from spectral_jax.evaluation.study import collect
from spectral_jax.files import read_json, write_json
from spectral_jax.reporting import write_study_report
from spectral_jax.training import run
from spectral_jax.training.config import Config, ConfigError, parse_config
from spectral_jax.training.loop import train
from spectral_jax.training.run import TrainedModel

STUDIES = "experiments/studies"
STUDY_FILE = "study.json"
START_AGAIN = "delete it and start the study again"
GIBIBYTES_PER_RUN = 3
POLL_SECONDS = 1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm on one seed.

    Attributes:
      folder: of the run.
      config: of its training.
      on: records of each data set to test on, and which of their splits.
      limits: see `Study`.
    """

    folder: pathlib.Path
    config: Config
    on: tuple[tuple[pathlib.Path, str], ...]
    limits: Any

    @property
    def name(self) -> str:
        """As people see it."""
        return "/".join(self.folder.parts[-2:])

    def results(self) -> list["Result"]:
        """All that it is to leave in its folder."""
        results = []
        for records, split in self.on:
            shifted = records != self.training_records
            for kind, measure in (EVERYWHERE if shifted else EVERYWHERE | IN_DISTRIBUTION).items():
                file = self.folder / kind / f"{records.parts[-3]}-{split}.json"
                results.append(Result(kind, measure, records, split, file))
        return results

    @property
    def training_records(self) -> pathlib.Path:
        """The records that it is trained on, whose test split comes first."""
        return self.on[0][0]


class Result(NamedTuple):
    """A file with what was measured on one data set."""

    kind: str
    measure: Callable[..., None]
    records: pathlib.Path
    split: str
    file: pathlib.Path


class RunsFailed(ValueError):
    """Some runs of a study failed."""


def load_study(file: str, small: bool) -> Study:
    """What `get_study` of a file returns."""
    if not pathlib.Path(file).is_file():
        raise ConfigError(f"--study={file}: no such file; those that come along are in {STUDIES}")
    return runpy.run_path(file)["get_study"](small)


def make_runs(study: Study, workdir: pathlib.Path, raw: dict[str, str]) -> list[Run]:
    """All runs, seed by seed, so that arms can be compared early on; prepares the data."""
    values = copy.deepcopy(study.config)
    values.data.root = raw.get(values.data.name, "")
    data = parse_config(values).data
    on = [(run.prepare_data(data), "test")]
    on += [(run.partner_data(data, name, raw.get(name, "")), "all") for name in study.on]
    runs = []
    for seed in range(max(arm.seeds for arm in study.arms.values())):
        for name, arm in study.arms.items():
            if seed < arm.seeds:
                config = copy.deepcopy(values)
                config.train.seed = seed
                for key, value in arm.changes.items():
                    section, _, field = key.partition(".")
                    with config.unlocked():
                        config[section][field] = value
                folder = workdir / "runs" / name / f"seed{seed}"
                runs.append(Run(folder, parse_config(config), tuple(on), study.limits))
    return runs


def _calibration(trained: TrainedModel, split: Split, task: Run, **limits: Any) -> None:
    validation = Split(task.training_records, "validation")
    measure_calibration(trained, split, validation, task.folder, **limits)


def _analysis(trained: TrainedModel, split: Split, task: Run, **limits: Any) -> None:
    training = Split(task.training_records, "train")
    analyse_errors(trained, split, task.folder, reference_split=training, **limits)


def _in_folder(measure: Callable[..., Any]) -> Callable[..., None]:
    def measured(trained: TrainedModel, split: Split, task: Run, **limits: Any) -> None:
        measure(trained, split, task.folder, **limits)

    return measured


# what is measured of a run, by the folder that it is written to
EVERYWHERE: dict[str, Callable[..., None]] = {
    "evaluation": _in_folder(evaluate),
    "calibration": _calibration,
    "analysis": _analysis,
}
IN_DISTRIBUTION: dict[str, Callable[..., None]] = {
    "robustness": _in_folder(measure_robustness),
    "explanation": _in_folder(measure_explanations),
    "interactions": _in_folder(measure_interactions),
}


def perform(task: Run) -> None:
    """Trains and measures one run, as far as it is not done; what it says goes to a log."""
    task.folder.mkdir(parents=True, exist_ok=True)
    with _output_to(task.folder.with_suffix(".log")):
        train(task.config, task.folder)
        missing = [of for of in task.results() if not of.file.exists()]
        if missing:
            trained = run.restore(task.folder)
        for result in missing:
            split = Split(result.records, result.split)
            result.measure(trained, split, task, **task.limits.get(result.kind, {}))


@contextlib.contextmanager
def _output_to(file: pathlib.Path) -> Iterator[None]:
    """Sends what this process prints, and its libraries too, to the end of a file."""
    with file.open("a") as log:
        kept = [os.dup(stream) for stream in (1, 2)]
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copied in zip((1, 2), kept, strict=True):
                os.dup2(copied, stream)
                os.close(copied)


def perform_all(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, BaseException | None]]:
    """Performs the runs, `jobs` at a time; yields each when it ends, with what made it fail."""
    files = [result.file for task in runs for result in task.results()]
    spawn = multiprocessing.get_context("spawn")
    cores = spawn.Queue()
    for part in _share_cores(jobs):
        cores.put(part)
    with (
        tqdm(total=len(files), unit="result", smoothing=0, dynamic_ncols=True, disable=None) as bar,
        concurrent.futures.ProcessPoolExecutor(
            jobs, spawn, initializer=_start_worker, initargs=(cores,)
        ) as pool,
    ):
        running = {pool.submit(perform, task): task for task in runs}
        try:
            while running:
                done, _ = concurrent.futures.wait(running, POLL_SECONDS)
                for future in done:
                    task, error = running.pop(future), future.exception()
                    if bar.disable:
                        state = "failed" if error else "done"
                        print(f"{task.name} {state}, {len(running)} to go", flush=True)
                    yield task, error
                bar.n = sum(file.exists() for file in files)
                bar.set_postfix_str(f"{len(runs) - len(running)} of {len(runs)} runs ended")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # a run saves its state and ends
            raise


def _share_cores(jobs: int) -> list[set[int]]:
    """The cores of each job: its own ones if there are enough, as threads that share are slower."""
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        return [set(cores)] * jobs
    return [set(cores[job::jobs]) for job in range(jobs)]


def _start_worker(cores: Any) -> None:
    os.sched_setaffinity(0, cores.get())
    flags.keep_compiled_programs()


def default_jobs() -> int:
    """Runs at a time: one on an accelerator; on CPU one a core, as far as memory allows."""
    if allocator.has_accelerator():
        return 1
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return max(1, min(len(os.sched_getaffinity(0)), int(free // GIBIBYTES_PER_RUN)))


def describe(
    study: Study, runs: Sequence[Run], versions: dict[str, str], wall_seconds: float
) -> dict[str, Any]:
    """What `study.json` says of the study."""
    arms = {}
    for arm in study.arms:
        task = next(task for task in runs if task.folder.parent.name == arm)
        arms[arm] = {
            "model": task.config.model.name,
            "spatial": task.config.objective.spatial,
            "spectral": task.config.objective.spectral,
            "weight": task.config.objective.weight,
            "seeds": study.arms[arm].seeds,
        }
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    data = runs[0].training_records
    return {
        "name": pathlib.Path(STUDY.value).stem,
        "title": study.title,
        "small": SMALL.value,
        "dataset": study.config.data.name,
        "on": list(study.on),
        "arms": arms,
        "baselines": {arm: study.arms[arm].baseline for arm in study.arms},
        "seeds": list(range(max(arm.seeds for arm in study.arms.values()))),
        "revision": versions["revision"],
        "versions": versions,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "wall_seconds": wall_seconds,
        "licence": read_json(data / SUMMARY_FILE, PREPARE_AGAIN)["licence"],
        "show_images": study.show_images,
    }


def main() -> None:
    workdir = flags.path(WORKDIR)
    study = load_study(STUDY.value, SMALL.value)
    raw = dict(item.partition("=")[::2] for item in RAW.value)
    runs = make_runs(study, workdir, raw)
    file = workdir / STUDY_FILE
    start = time.time() - (read_json(file, START_AGAIN)["wall_seconds"] if file.exists() else 0)
    failures = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(flags.EXIT_PREEMPTED))
    for task, error in perform_all(runs, JOBS.value or default_jobs()):
        if error:
            failures.append(f"  {task.name}: {type(error).__name__}: {error}")
        else:
            versions = read_json(task.folder / run.VERSIONS_FILE, START_AGAIN)
            write_json(file, describe(study, runs, versions, time.time() - start))
    collect(workdir)
    print(f"report: {write_study_report(workdir)}")
    if failures:
        raise RunsFailed(
            f"{len(failures)} of {len(runs)} runs failed; the same command tries them again\n"
            + "\n".join(failures)
        )


if __name__ == "__main__":
    STUDY = absl_flags.DEFINE_string("study", None, "File of the study.", required=True)
    WORKDIR = flags.define_workdir()
    SMALL = absl_flags.DEFINE_bool("small", False, "The form that two CPU cores can finish.")
    RAW = absl_flags.DEFINE_list(
        "raw", [], "NAME=FOLDER, raw files of data sets; those prepared before need none."
    )
    JOBS = absl_flags.DEFINE_integer("jobs", 0, "Runs at a time; 0: as many as the machine bears.")
    flags.run(main)
