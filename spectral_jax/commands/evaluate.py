"""Scores a trained network case by case, at the original size, in or out of distribution.

    spectral-jax evaluate --workdir=runs/quickstart
    spectral-jax evaluate --workdir=runs/kvasir_unet --on=kvasir_seg,cvc_clinicdb
    spectral-jax evaluate --workdir=runs/mine --on=folder=other_hospital
    spectral-jax evaluate --workdir=runs/a,runs/b,runs/c --output=runs/abc

Of the data that it was trained on the test split is scored, of other data every case. Writes
`evaluation/<data set>-<split>.json` in the run's folder, or for several runs, whose
probabilities are averaged, in the folder --output; and prints a table.
"""

import os
import pathlib
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags as absl_flags
from etils import epath

from spectral_jax import metrics
from spectral_jax.commands import flags
from spectral_jax.data.datasets import DATASETS
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import FOLDER, evaluate
from spectral_jax.files import read_json, write_json
from spectral_jax.inference.trained import restore_all
from spectral_jax.metrics import METRICS
from spectral_jax.reporting.run_page import write_report
from spectral_jax.training import distributed, run
from spectral_jax.training.config import ConfigError, DataConfig

CELL_COLUMNS = 15
ELSEWHERE_FILE = "elsewhere.json"  # folders of other data, by what they are called in results


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
    cases = len({row["case"] for row in result["cases"]})
    split = result["split"]
    which = f"all {cases} cases" if split == "all" else f"{split} split of {cases} cases"
    kind = "" if result["dataset"] == result["trained_on"] else ", out of distribution"
    step = result["checkpoint"]["step"]
    steps = f"step {step}" if isinstance(step, int) else f"steps {', '.join(map(str, step))}"
    title = (
        f"{result['dataset']}{kind}: {which}, checkpoint of {steps}; distances in {unit}, NSD "
        f"within {tolerance}"
    )
    print(f"\n{textwrap.fill(title, flags.COLUMNS)}")
    if result.get("largest_component"):
        print(f"only the largest component is kept of {', '.join(result['largest_component'])}")
    at_once = max(1, (flags.COLUMNS - width) // (CELL_COLUMNS + 1))
    for first in range(0, len(METRICS), at_once):
        shown = METRICS[first : first + at_once]
        print(" ".join([" " * width, *(metric.rjust(CELL_COLUMNS) for metric in shown)]))
        for name, values in [*by_class.items(), ("mean", result["summary"])]:
            pairs = [(values[metric]["mean"], values[metric]["count"]) for metric in shown]
            cells = [f"{mean:.4f} ({count})".rjust(CELL_COLUMNS) for mean, count in pairs]
            print(" ".join([name.ljust(width), *cells]))
        print()
    print("In brackets: the number of cases where the metric is defined.\n")


class Chosen(NamedTuple):
    """What a run is to be scored on.

    Attributes:
      records: folder of a prepared data set.
      dataset: what it is called in results.
      split: of it.
    """

    records: pathlib.Path
    dataset: str
    split: str


def chosen_data(
    workdir: epath.Path,
    texts: Sequence[str],
    own_split: str,
    other_split: str = "all",
    results: epath.Path | None = None,
) -> Iterator[Chosen]:
    """Each data set that a run is to be scored on.

    Args:
      workdir: of the run.
      texts: of --on; empty for the run's own data set.
      own_split: of the run's own data.
      other_split: of any other.
      results: folder of the scores, if not the run's.
    """
    config = run.read_config(workdir).data
    for name, root in parse_on(texts or [config.name]):
        records = run.partner_data(config, name, root)
        if is_own(workdir, config, name, root, records):
            yield Chosen(records, name, own_split)
        else:
            known_as = name_of_results(results or workdir, config.name, name, root)
            yield Chosen(records, known_as, other_split)


def parse_on(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Data sets and their folders, from `NAME` and `NAME=FOLDER` with commas between.

    A folder's name may hold commas too, where there is such a folder.
    """
    for text in texts:
        parts = text.split(",")
        while parts:
            name, _, root = parts[0].partition("=")
            count = 1
            if root:
                parts[0] = root
                count = flags.count_together(parts, lambda name: os.path.lexists(_absolute(name)))
            yield name.strip(), ",".join(parts[:count]).strip() if root else ""
            parts = parts[count:]


def _absolute(root: str) -> pathlib.Path:
    return pathlib.Path(root).expanduser().resolve()


def is_own(
    workdir: epath.Path, config: DataConfig, name: str, root: str, records: pathlib.Path
) -> bool:
    """Whether data are what a run was trained on, wherever they lie."""
    if name != config.name:
        return False
    if not root and not DATASETS[name].partner(name).options:
        return True
    before = run.read_dataset_info(workdir).checksums
    return bool(before) and before == Split(records, "all").info.checksums


def name_of_results(workdir: epath.Path, own: str, name: str, root: str) -> str:
    """What another data set is called in results: by what differs, and by its folder.

    As many of the folder's parents are named as set it apart from those that were scored before,
    which the run's folder remembers.
    """
    options = DATASETS[own].partner(name).options.values() if name == own else ()
    stem = "-".join([name, *map(str, options)])
    if not root:
        return stem
    folder = _absolute(root)
    file = workdir / ELSEWHERE_FILE
    known = read_json(file, "delete it") if file.exists() else {}
    # "folder" says nothing, and the own name belongs to the own data
    fewest = int(DATASETS[name].classes is None or stem == own)
    parts, found = folder.parts[1:], stem
    for count in range(fewest, len(parts) + 1):
        found = "-".join([stem, *parts[len(parts) - count :]])
        if known.get(found, str(folder)) == str(folder):
            break
    if distributed.is_first() and found not in known:
        write_json(file, known | {found: str(folder)})
    return found


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
    # what one fold held out, the others were trained on
    own_split = "test" if members else run.read_config(workdir).data.scored_split
    splits = (SPLIT.value or own_split, SPLIT.value or "all")
    for chosen in chosen_data(workdirs[0], ON.value, *splits, results=workdir):
        result = evaluate_split(
            workdir,
            chosen.records,
            chosen.split,
            CHECKPOINT.value,
            chosen.dataset,
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
