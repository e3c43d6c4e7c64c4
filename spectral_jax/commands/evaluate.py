"""Scores a trained network case by case, at the original size, in or out of distribution.

    spectral-jax evaluate --workdir=runs/quickstart
    spectral-jax evaluate --workdir=runs/kvasir_unet --on=kvasir_seg,cvc_clinicdb
    spectral-jax evaluate --workdir=runs/a,runs/b,runs/c --output=runs/abc

Writes `evaluation/<data set>-<split>.json` in the run's folder, or for several runs, whose
probabilities are averaged, in the folder --output; and prints a table.
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags as absl_flags
from etils import epath

from spectral_jax import metrics
from spectral_jax.commands import flags
from spectral_jax.data.datasets import DATASETS
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import FOLDER, evaluate
from spectral_jax.inference.trained import restore_all
from spectral_jax.metrics import METRICS
from spectral_jax.reporting.run_page import write_report
from spectral_jax.training import distributed, run
from spectral_jax.training.config import ConfigError, DataConfig

TERMINAL_COLUMNS = 100
CELL_COLUMNS = 15


def evaluate_split(
    workdir: epath.Path,
    data: pathlib.Path,
    split: str,
    checkpoint: str,
    dataset: str,
    *,
    members: Sequence[epath.Path] = (),
    **options: Any,
) -> dict[str, Any]:
    """Restores a run and scores it on one split of a prepared data set; `options` of `evaluate`.

    What is to be called as the run's own data set has to be the same data. With `members`, several
    runs are averaged and the results go to `workdir`; none may have been trained on what is scored.
    """
    trained = restore_all(members or [workdir], checkpoint)
    cases = Split(data, split)
    if dataset == trained.data.name:
        for member in members or [workdir]:
            run.check_data(member, cases.info, split if members else "all")
    with distributed.only_writer(workdir / FOLDER, wait=True):
        return evaluate(trained, cases, workdir, checkpoint, dataset=dataset, **options)


def print_scores(result: dict[str, Any]) -> None:
    """Prints a table: a row for each class, then the mean over classes."""
    by_class = result["by_class"]
    width = max(len(name) for name in [*by_class, "mean"])
    unit = result["distance_unit"]
    tolerance = f"{result['nsd_tolerance']:g} {unit}"
    step = result["checkpoint"]["step"]
    steps = f"step {step}" if isinstance(step, int) else f"steps {', '.join(map(str, step))}"
    print(
        f"\n{result['dataset']}, {result['split']} split, checkpoint of {steps}; distances in "
        f"{unit}, NSD within {tolerance}"
    )
    if result.get("largest_component"):
        print(f"only the largest component is kept of {', '.join(result['largest_component'])}")
    at_once = max(1, (TERMINAL_COLUMNS - width) // (CELL_COLUMNS + 1))
    for first in range(0, len(METRICS), at_once):
        shown = METRICS[first : first + at_once]
        print(" ".join([" " * width, *(metric.rjust(CELL_COLUMNS) for metric in shown)]))
        for name, values in [*by_class.items(), ("mean", result["summary"])]:
            pairs = [(values[metric]["mean"], values[metric]["count"]) for metric in shown]
            cells = [f"{mean:.4f} ({count})".rjust(CELL_COLUMNS) for mean, count in pairs]
            print(" ".join([name.ljust(width), *cells]))
        print()
    print("In brackets: the number of cases where the metric is defined.\n")


def chosen_data(
    config: DataConfig, items: Sequence[str], split: str | None
) -> Iterator[tuple[pathlib.Path, str, str]]:
    """The records of each data set to score a run on, what it is called in results, and its split.

    Args:
      config: of the run.
      items: of --on; empty for the run's own data set.
      split: of --split.
    """
    for item in items or [config.name]:
        name, _, root = item.partition("=")
        dataset = name_of_results(config.name, name, root)
        own = config.scored_split if dataset == config.name else "test"
        yield run.partner_data(config, name, root), dataset, split or own


def name_of_results(own: str, name: str, root: str) -> str:
    """What a data set is called in results: another one of the run's own kind, by what differs."""
    if name != own:
        return name
    differs = [str(value) for value in DATASETS[own].partner(name).options.values()]
    return "-".join([name, *differs, *([pathlib.Path(root).name] if root else [])])


def main() -> None:
    JOIN()
    workdirs = flags.paths(WORKDIR)
    members = workdirs if len(workdirs) > 1 else ()
    if bool(members) != bool(OUTPUT.value):
        raise ConfigError(
            "--output is for the scores of several runs, and they need it; those of one run go to "
            "its own folder"
        )
    workdir = flags.path(OUTPUT) if members else workdirs[0]
    config = run.read_config(workdirs[0]).data
    # what one fold held out, the others were trained on
    wanted = SPLIT.value or ("test" if members else None)
    for data, dataset, split in chosen_data(config, ON.value, wanted):
        result = evaluate_split(
            workdir,
            data,
            split,
            CHECKPOINT.value,
            dataset,
            members=members,
            threshold=THRESHOLD.value,
            nsd_tolerance=NSD_TOLERANCE.value,
        )
        if distributed.is_first():
            print_scores(result)
    if distributed.is_first():
        print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
    WORKDIR = flags.define_workdirs()
    OUTPUT = absl_flags.DEFINE_string("output", "", "Folder for the scores of several runs.")
    JOIN = flags.define_processes()
    ON = flags.define_on()
    SPLIT = flags.define_split()
    CHECKPOINT = flags.define_checkpoint()
    THRESHOLD = flags.define_threshold()
    NSD_TOLERANCE = absl_flags.DEFINE_float(
        "nsd_tolerance",
        metrics.NSD_TOLERANCE,
        "Of the surface Dice (NSD), in mm, or in pixels where the spacing is not known.",
    )
    flags.run(main)
