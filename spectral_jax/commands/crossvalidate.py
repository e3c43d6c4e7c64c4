r"""Trains every fold of a cross-validation, and scores each case by the fold that held it out.

    spectral-jax crossvalidate --config=folder --config.data.root=MY_PICTURES \
        --config.data.folds=5 --workdir=runs/mine

Each fold is a run of its own, `fold0`, `fold1`, ... in the folder --workdir, as spectral-jax train
--config.data.fold=0 makes it; folds that are finished stay as they are. The scores of all cases are
written to `evaluation` there, with a report. Patients and videos are never parted; see
`group_pattern` and `group_column` of the data set folder.
"""

from spectral_jax.commands import flags
from spectral_jax.commands.evaluate import print_scores
from spectral_jax.commands.train import train_and_score
from spectral_jax.evaluation.cases import write_result
from spectral_jax.evaluation.evaluate import FOLDER
from spectral_jax.evaluation.folds import join_folds
from spectral_jax.files import read_json
from spectral_jax.reporting.run_page import EVALUATE_AGAIN, write_report
from spectral_jax.training import distributed
from spectral_jax.training.config import parse_config


def main() -> None:
    JOIN()
    workdir = flags.path(WORKDIR)
    values = CONFIG.value
    results = []
    for fold in range(values.data.folds):
        values.data.fold = fold
        config = parse_config(values)
        folder = workdir / f"fold{fold}"
        if distributed.is_first():
            print(f"fold {fold}, of {values.data.folds}: {folder}", flush=True)
        train_and_score(config, folder)
        scores = folder / FOLDER / f"{config.data.name}-{config.data.scored_split}.json"
        results.append(read_json(scores, EVALUATE_AGAIN))
    result = join_folds(results)
    write_result(workdir, FOLDER, result)
    if distributed.is_first():
        print_scores(result)
        print(f"report: {write_report(workdir)}")


if __name__ == "__main__":
    WORKDIR = flags.define_workdir()
    JOIN = flags.define_processes()
    CONFIG = flags.define_config()
    flags.run(main)
