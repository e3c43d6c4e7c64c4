"""Trains a network, evaluates its best checkpoint and writes a report.

    python -m experiments.train --config=experiments/configs/quickstart.py --workdir=runs/quickstart

Any value of the configuration can be changed: --config.optim.learning_rate=0.1. The same command
resumes where it was interrupted, and does nothing when all is done.
"""

import jax
from absl import flags as absl_flags
from etils import epath
from ml_collections import ConfigDict, config_flags

from experiments import flags
from experiments.evaluate import evaluate_split, print_scores
from spectral_jax.data.datasets import DATASETS
from spectral_jax.evaluation.evaluate import FOLDER
from spectral_jax.files import read_json
from spectral_jax.reporting.report import REPORT_FILE, write_report
from spectral_jax.training import distributed, run
from spectral_jax.training.checkpoint import Checkpoints
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.loop import train
from spectral_jax.training.plan import describe, make_plan

WORKDIR = flags.define_workdir()
JOIN = flags.define_processes()
DRY_RUN = absl_flags.DEFINE_bool(
    "dry_run", False, "Compile a step without data, print what it takes, and end."
)
MESH = absl_flags.DEFINE_string(
    "mesh", "", "Devices to plan for with --dry_run, such as data:64,fsdp:4; none have to be there."
)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    "experiments/configs/quickstart.py",
    "File with the configuration.",
    lock_config=False,
    accept_new_attributes=True,  # options of readers and models; parse_config knows the rest
)


def dry_run(values: ConfigDict) -> None:
    """Prints the plan of a step for a mesh of virtual devices."""
    try:
        mesh = {key: int(size) for key, size in (x.split(":") for x in MESH.value.split(","))}
        values.mesh.update(mesh)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--mesh={MESH.value!r}: expected such as data:64,fsdp:4") from error
    config = parse_config(values)
    devices = max(config.mesh.data, 1) * config.mesh.fsdp
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    dataset = DATASETS[config.data.name]
    classes = len(dataset.classes or ("background", "foreground"))
    channels = dataset.channels or 3
    print(f"{devices} devices, {config.model.name}, {classes} classes, {channels} channels, "
          f"{config.train.batch_size} examples a step")  # fmt: skip
    print(describe(make_plan(config, classes, channels)))


def main() -> None:
    if DRY_RUN.value:
        dry_run(CONFIG.value)
        return
    JOIN()
    workdir = flags.path(WORKDIR)
    config = parse_config(CONFIG.value)
    with distributed.only_writer(workdir):
        if not train(config, workdir) and is_finished(workdir, config.data.name):
            print(f"{workdir} is finished, nothing to do; report: {workdir / REPORT_FILE}")
            return
        result = evaluate_split(
            workdir, run.prepare_data(config.data), "test", "best", config.data.name
        )
        if distributed.is_first():
            report = write_report(workdir)
            print_scores(result)
            print(f"report: {report}")


def is_finished(workdir: epath.Path, dataset: str) -> bool:
    """Whether the scores of the best checkpoint and the report are there, and whole."""
    try:
        scores = read_json(workdir / FOLDER / f"{dataset}-test.json", "")
        page = (workdir / REPORT_FILE).read_bytes()
        with Checkpoints(workdir) as checkpoints:
            newest = scores["checkpoint"]["step"] == checkpoints.best_step
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return newest and page.rstrip().endswith(b"</html>")


if __name__ == "__main__":
    flags.run(main)
