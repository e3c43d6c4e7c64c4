"""Trains a network, evaluates its best checkpoint and writes a report.

    spectral-jax train --config=quickstart --workdir=runs/quickstart

Any value of the configuration can be changed: --config.optim.learning_rate=0.1. The same command
resumes where it was interrupted, and does nothing when all is done.
"""

import jax
from absl import flags as absl_flags
from etils import epath
from ml_collections import ConfigDict

from spectral_jax.commands import flags
from spectral_jax.commands.evaluate import evaluate_split, print_scores
from spectral_jax.data.datasets import DATASETS
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import FOLDER
from spectral_jax.evaluation.postprocess import decide_if_asked
from spectral_jax.files import read_json, write_json
from spectral_jax.reporting.run_page import REPORT_FILE, write_report
from spectral_jax.training import distributed, run
from spectral_jax.training.checkpoint import Checkpoints
from spectral_jax.training.config import Config, ConfigError, DataConfig, parse_config
from spectral_jax.training.loop import train
from spectral_jax.training.plan import as_json, describe, make_plan
from spectral_jax.training.topology import describe_slices, find_chip


def dry_run(values: ConfigDict) -> None:
    """Prints the plan of a step for virtual devices, or for a TPU slice that is not there."""
    jax.config.update("jax_platforms", "cpu")
    chip = devices = None
    if TOPOLOGY.value:
        chip = find_chip(TOPOLOGY.value)
        devices = describe_slices(TOPOLOGY.value, SLICES.value)
    if MESH.value:
        try:
            mesh = {key: int(size) for key, size in (x.split(":") for x in MESH.value.split(","))}
            values.mesh.update(mesh)
        except (ValueError, KeyError) as error:
            raise ConfigError(
                f"--mesh={MESH.value!r}: expected a form like data:64,fsdp:4"
            ) from error
    config = parse_config(values)
    count = max(config.mesh.data, 1) * config.mesh.fsdp if devices is None else len(devices)
    if devices is None:
        jax.config.update("jax_num_cpu_devices", count)
    shared = count * config.train.accumulate
    if config.train.batch_size % shared:
        values.train.batch_size = -(-config.train.batch_size // shared) * shared
        print(f"config.train.batch_size={config.train.batch_size} cannot be shared by {shared} "
              f"parts: planned with {values.train.batch_size}")  # fmt: skip
        config = parse_config(values)
    classes, channels = shape_of(config.data)
    print(f"{count} devices, {config.model.name}, {classes} classes, {channels} channels, "
          f"{config.train.batch_size} examples a step", flush=True)  # fmt: skip
    plan = make_plan(config, classes, channels, devices)
    print(describe(plan, chip))
    if PLAN.value:
        write_json(epath.Path(PLAN.value), as_json(plan, chip))


def shape_of(config: DataConfig) -> tuple[int, int]:
    """Classes and channels of a data set, from its files where it does not say."""
    dataset = DATASETS[config.name]
    classes, channels = dataset.classes or config.options.get("classes"), dataset.channels
    if classes and channels:
        return len(classes), channels
    if config.root:
        info = Split(run.prepare_data(config), "train").info
        return len(info.classes), info.channels
    classes, channels = classes or ("background", "foreground"), channels or 3
    print(f"{config.name} without --config.data.root: assumed are {len(classes)} classes and "
          f"{channels} channels")  # fmt: skip
    return len(classes), channels


def main() -> None:
    if DRY_RUN.value:
        dry_run(CONFIG.value)
        return
    JOIN()
    train_and_score(parse_config(CONFIG.value), flags.path(WORKDIR))


def train_and_score(config: Config, workdir: epath.Path) -> None:
    """Trains a run, scores its best checkpoint and writes the report, as far as it is not done."""
    name, split = config.data.name, config.data.scored_split
    with distributed.only_writer(workdir):
        trained = train(config, workdir)
        data = run.prepare_data(config.data)
        decided = decide_if_asked(config, data, workdir)
        if not trained and not decided and is_finished(workdir, name, split):
            print(f"{workdir} is finished, nothing to do; report: {workdir / REPORT_FILE}")
            return
        result = evaluate_split(workdir, data, split, "best", name)
        if distributed.is_first():
            report = write_report(workdir)
            print_scores(result)
            print(f"report: {report}")


def is_finished(workdir: epath.Path, dataset: str, split: str = "test") -> bool:
    """Whether the scores of the best checkpoint and the report are there, and whole."""
    try:
        scores = read_json(workdir / FOLDER / f"{dataset}-{split}.json", "")
        page = (workdir / REPORT_FILE).read_bytes()
        with Checkpoints(workdir) as checkpoints:
            newest = scores["checkpoint"]["step"] == checkpoints.best_step
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return newest and page.rstrip().endswith(b"</html>")


if __name__ == "__main__":
    JOIN = flags.define_processes()
    DRY_RUN = absl_flags.DEFINE_bool(
        "dry_run", False, "Compile a step without data, print what it takes, and end."
    )
    WORKDIR = flags.define_workdir(unless=DRY_RUN.name)
    MESH = absl_flags.DEFINE_string(
        "mesh",
        "",
        "Devices to plan for with --dry_run, such as data:64,fsdp:4; they need not exist.",
    )
    TOPOLOGY = absl_flags.DEFINE_string(
        "topology",
        "",
        "TPU slice to plan for with --dry_run, such as v5e:16x16; needs libtpu only.",
    )
    SLICES = absl_flags.DEFINE_integer("slices", 1, "How many such slices, joined by the network.")
    PLAN = absl_flags.DEFINE_string("plan", "", "File for what --dry_run prints, as JSON.")
    CONFIG = flags.define_config()
    flags.run(main)
