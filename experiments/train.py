"""Trains a network, evaluates its best checkpoint and writes a report.

    python -m experiments.train --config=experiments/configs/quickstart.py --workdir=runs/quickstart

Any value of the configuration can be changed: --config.optim.learning_rate=0.1. The same command
goes on where it was interrupted, and does nothing when all is done.
"""

from ml_collections import config_flags

from experiments import flags
from experiments.evaluate import evaluate_split, print_scores
from spectral_jax.reporting.report import write_report
from spectral_jax.training import distributed, run
from spectral_jax.training.config import parse_config
from spectral_jax.training.loop import train

WORKDIR = flags.define_workdir()
JOIN = flags.define_processes()
CONFIG = config_flags.DEFINE_config_file(
    "config", "experiments/configs/quickstart.py", "File with the configuration.", lock_config=True
)


def main() -> None:
    JOIN()
    workdir = flags.path(WORKDIR)
    config = parse_config(CONFIG.value)
    trained = train(config, workdir)
    report = workdir / "report.html"
    if not trained and report.exists():
        print(f"{workdir} is finished, nothing to do; report: {report}")
        return
    result = evaluate_split(workdir, run.prepare_data(config.data), "test", "best")
    if distributed.is_first():
        report = write_report(workdir)
        print_scores(result)
        print(f"report: {report}")


if __name__ == "__main__":
    flags.run(main)
