"""Trains every arm of a study on every seed, measures each run, and writes one page.

    spectral-jax study --study=experiments/studies/heart.py \
        --raw=acdc=ACDC_png,sunnybrook=Sunnybrook --workdir=studies/heart \
        --results=experiments/results/heart

Arms differ in a few values; everything else, seeds included, they share. A finished run leaves one
small record in the folder --results; it counts as done wherever the study goes on. The same command
goes on where it was interrupted; --arms and --seeds choose a part, and parts are merged by copying
their records into one folder. A run that fails is named at the end, and the others go on.
"""

import concurrent.futures
import contextlib
import copy
import dataclasses
import datetime
import hashlib
import json
import multiprocessing
import os
import pathlib
import platform
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags as absl_flags
from tqdm import tqdm

from spectral_jax import allocator
from spectral_jax.commands import flags, measure
from spectral_jax.data.datasets.summary import CHECKSUMS_FILE, PREPARE_AGAIN, SUMMARY_FILE
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import FOLDER as EVALUATION
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.evaluation.postprocess import decide_if_asked
from spectral_jax.files import read_json, write_json
from spectral_jax.inference.trained import restore
from spectral_jax.lock import only_writer
from spectral_jax.reporting import write_study_report
from spectral_jax.studies import records, registration
from spectral_jax.studies.design import Study
from spectral_jax.studies.registration import Registration
from spectral_jax.studies.results import STUDY_FILE, collect
from spectral_jax.training import logging, run
from spectral_jax.training.config import Config, ConfigError, parse_config
from spectral_jax.training.loop import train

STUDIES = "experiments/studies"
GIBIBYTES_PER_RUN = 3
POLL_SECONDS = 1.0
START_AGAIN = "delete its folder, and the run is made again"
MEASURE_AGAIN = "delete it, and it is measured again"
IN_DISTRIBUTION_ONLY = ("robustness", "explanation", "interactions")


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm on one seed.

    Attributes:
      arm: its name.
      seed: of everything random.
      folder: of the run.
      record: what it is to leave.
      config: of its training.
      on: records of each data set to measure on, and which of their splits; first the one that it
        is trained on.
      measurements: see `Study`.
      registration: of the study, if there is one.
    """

    arm: str
    seed: int
    folder: pathlib.Path
    record: pathlib.Path
    config: Config
    on: tuple[tuple[pathlib.Path, str], ...]
    measurements: Mapping[str, Mapping[str, Any]]
    registration: Registration | None

    @property
    def name(self) -> str:
        """As people see it."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def data(self) -> pathlib.Path:
        """The records that it is trained on."""
        return self.on[0][0]

    def results(self) -> list["Result"]:
        """What is to be measured."""
        found = []
        for data, split in self.on:
            for kind in self.measurements:
                if data == self.data or kind not in IN_DISTRIBUTION_ONLY:
                    file = self.folder / kind / f"{data.parts[-3]}-{split}.json"
                    found.append(Result(kind, data, split, file))
        return found


class Result(NamedTuple):
    """A file with what was measured on one data set."""

    kind: str
    data: pathlib.Path
    split: str
    file: pathlib.Path


class RunsFailed(ValueError):
    """Some runs of a study failed."""


def load_study(file: str) -> Study:
    """What `get_study` of a file returns."""
    if not pathlib.Path(file).is_file():
        raise ConfigError(f"--study={file}: no such file; ours are in {STUDIES}")
    return runpy.run_path(file)["get_study"]()


def choose(name: str, wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The arms or seeds that a flag chooses, in the study's order; all without a choice."""
    for item in wanted:
        if item not in known:
            raise ConfigError(f"--{name}={item}: this study has {', '.join(known)}")
    return [item for item in known if not wanted or item in wanted]


def arm_config(study: Study, arm: str, seed: int) -> Config:
    """The configuration of a run."""
    values = copy.deepcopy(study.config)
    values.train.seed = seed
    for key, value in study.arms[arm].items():
        section, _, field = key.partition(".")
        with values.unlocked():
            values[section][field] = value
    return parse_config(values)


def make_runs(
    study: Study,
    arms: Sequence[str],
    seeds: Sequence[int],
    workdir: pathlib.Path,
    results: pathlib.Path,
    raw: Mapping[str, str],
    registered: Registration | None,
) -> list[Run]:
    """The runs, seed by seed, so that whole seeds can be compared early on; prepares the data."""
    study.config.data.root = raw.get(study.config.data.name, "")
    data = parse_config(study.config).data
    on = [(run.prepare_data(data), study.split)]
    on += [(run.partner_data(data, name, raw.get(name, "")), "all") for name in study.on]
    return [
        Run(
            arm=arm,
            seed=seed,
            folder=workdir / "runs" / arm / f"seed{seed}",
            record=records.record_file(results, arm, seed),
            config=arm_config(study, arm, seed),
            on=tuple(on),
            measurements=study.measurements,
            registration=registered,
        )
        for seed in seeds
        for arm in arms
    ]


# by name, which is also the folder that they write to
MEASUREMENTS: dict[str, Callable[..., dict[str, Any]]] = {
    EVALUATION: measure.without_own_data(evaluate),
    **{of.folder: of.measure for of in measure.MEASUREMENTS.values()},
}


def perform(task: Run) -> None:
    """Trains and measures one run, as far as it is not done; what it says goes to a log."""
    task.folder.parent.mkdir(parents=True, exist_ok=True)
    # a lock for each run: commands may share a study's folder for other arms or seeds
    with only_writer(task.folder), _output_to(task.folder.with_suffix(".log")):
        started = _start(task)
        train(task.config, task.folder)
        decide_if_asked(task.config, task.data, task.folder)
        missing = [of for of in task.results() if not of.file.exists()]
        if missing:
            trained = restore(task.folder)
        for result in missing:
            split = Split(result.data, result.split)
            options = task.measurements[result.kind]
            MEASUREMENTS[result.kind](trained, split, task.data, task.folder, **options)
        records.write_record(task.record, make_record(task, started))


def _start(task: Run) -> dict[str, Any]:
    """When the run began, and the registration that it found; kept beside its folder."""
    file = task.folder.with_suffix(".started.json")
    if not file.exists():
        if (task.folder / run.CONFIG_FILE).exists():
            raise ConfigError(
                f"{task.folder} was begun without {file.name}, so that nobody knows when: delete "
                "the folder, and the run is made again"
            )
        registered = task.registration and task.registration.sha256
        write_json(file, {"started": _now(), "registration": registered})
    return read_json(file, START_AGAIN)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def make_record(task: Run, started: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a run: see `spectral_jax.studies.records`."""
    by_data: dict[str, dict[str, Any]] = {}
    checkpoint: dict[str, Any] = {}
    for result in task.results():
        found = read_json(result.file, MEASURE_AGAIN)
        by_data.setdefault(result.file.stem, {})[result.kind] = found
        checkpoint = found["checkpoint"]
    config = dataclasses.asdict(task.config)
    for key in ("root", "data_dir"):
        del config["data"][key]  # of this machine
    departures = (
        None
        if task.registration is None
        else registration.differences(
            task.registration, task.arm, task.seed, config, dataclasses.asdict(Config())
        )
    )
    return {
        "arm": task.arm,
        "seed": task.seed,
        **started,
        "departures": departures,
        "finished": _now(),
        "checkpoint": checkpoint,
        "validation": _validation(task.folder / logging.FILE),
        "config": config,
        "versions": read_json(task.folder / run.VERSIONS_FILE, START_AGAIN),
        "data": {file.parts[-3]: _sha256(file / CHECKSUMS_FILE) for file, _ in task.on},
        "data_sets": {key: records.measured(found) for key, found in by_data.items()},
    }


def _validation(metrics: pathlib.Path) -> list[list[float]]:
    """Steps and validation Dice, to see whether the training reached its plateau."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    dice = {line["step"]: line["dice"] for line in lines if line["kind"] == "validation"}
    return [[step, records.rounded(value)] for step, value in sorted(dice.items())]


def _sha256(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


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
    spawn = multiprocessing.get_context("spawn")
    cores = spawn.Queue()
    for part in _share_cores(jobs):
        cores.put(part)
    with (
        tqdm(total=len(runs), unit="run", smoothing=0, dynamic_ncols=True, disable=None) as bar,
        concurrent.futures.ProcessPoolExecutor(
            jobs, spawn, initializer=_start_worker, initargs=(cores,)
        ) as pool,
    ):
        with _interrupts_ignored():
            running = {pool.submit(perform, task): task for task in runs}
        try:
            while running:
                done, _ = concurrent.futures.wait(running, POLL_SECONDS)
                for future in done:
                    task, error = running.pop(future), future.exception()
                    if bar.disable:
                        state = "failed" if error else "done"
                        print(f"{task.name}: {state}, {len(running)} to go", flush=True)
                    bar.update()
                    yield task, error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # a run saves its state and ends
            raise


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here never see Ctrl-C: this one tells them to save and end."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


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


def describe(study: Study, runs: Sequence[Run], registered: Registration | None) -> dict[str, Any]:
    """What `study.json` says of the study; what differs between its runs is in their records."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    licences = {
        data.parts[-3]: read_json(data / SUMMARY_FILE, PREPARE_AGAIN)["licence"]
        for data, _ in runs[0].on
    }
    return {
        "name": pathlib.Path(STUDY.value).stem,
        "title": study.title,
        "dataset": study.config.data.name,
        "split": study.split,
        "on": list(study.on),
        "arms": {arm: _plain(study.arms[arm]) for arm in study.arms},
        "seeds": list(study.seeds),
        "measurements": _plain(study.measurements),
        "registration": registered and registered.sha256,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "licences": licences,
        "show_images": study.show_images,
    }


def _plain(values: Any) -> Any:
    return json.loads(json.dumps(values, default=dict))


def register(file: pathlib.Path, study: Study) -> None:
    """Writes what the study's file says into its registration, and runs nothing."""
    config = dataclasses.asdict(parse_config(study.config))
    for key in registration.FREE_KEYS:
        section, _, field = key.partition(".")
        del config[section][field]
    facts = {
        "seeds": list(study.seeds),
        "arms": study.arms,
        "config": config,
        "split": study.split,
        "on": study.on,
        "measurements": study.measurements,
        "code": registration.analysis_facts(),
    }
    registered = registration.register(file, _plain(facts))
    print(f"{file.with_suffix(registration.SUFFIX)}: commit it before the first run")
    print(f"sha256 {registered.sha256}")


def main() -> None:
    if REGISTER.value:
        register(pathlib.Path(STUDY.value), load_study(STUDY.value))
        return
    workdir = flags.path(WORKDIR)
    results = pathlib.Path(RESULTS.value or workdir / "results")
    study = load_study(STUDY.value)
    arms = choose("arms", ARMS.value, list(study.arms))
    seeds = [int(seed) for seed in choose("seeds", SEEDS.value, [str(s) for s in study.seeds])]
    raw = dict(item.partition("=")[::2] for item in RAW.value)
    registered = registration.read_registration(pathlib.Path(STUDY.value))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(flags.EXIT_PREEMPTED))
    runs = make_runs(study, arms, seeds, workdir, results, raw, registered)
    write_json(results / STUDY_FILE, describe(study, runs, registered))
    left = [task for task in runs if not task.record.exists()]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are done", flush=True)
    failures = [
        f"  {task.name}: {type(error).__name__}: {error}"
        for task, error in perform_all(left, JOBS.value or default_jobs())
        if error
    ]
    if any(results.glob(f"{records.FOLDER}/*.json")):
        collect(results, registered)
        print(f"report: {write_study_report(results)}")
    if failures:
        raise RunsFailed(
            f"{len(failures)} of {len(runs)} runs failed; run the same command again to try them "
            "again\n" + "\n".join(failures)
        )


if __name__ == "__main__":
    STUDY = absl_flags.DEFINE_string("study", None, "File of the study.", required=True)
    WORKDIR = flags.define_workdir()
    RESULTS = absl_flags.DEFINE_string(
        "results", "", "Folder of what is kept; without, `results` in the --workdir."
    )
    RAW = absl_flags.DEFINE_list(
        "raw", [], "NAME=FOLDER, raw files of data sets; those prepared before need none."
    )
    REGISTER = absl_flags.DEFINE_bool(
        "register", False, "Only write what the study's file says into its registration."
    )
    ARMS = absl_flags.DEFINE_list("arms", [], "Some of the study's arms only.")
    SEEDS = absl_flags.DEFINE_list("seeds", [], "Some of its seeds only.")
    JOBS = absl_flags.DEFINE_integer(
        "jobs", 0, "Runs at a time; 0: choose from cores and free memory.", lower_bound=0
    )
    flags.run(main)
