"""Rebuilds the page of a run or of a study: `report.html` in its folder, self-contained.

spectral-jax report --workdir=runs/quickstart
spectral-jax report --workdir=experiments/results/heart

For a study, the table of findings in the README files of the repository follows.
"""

import pathlib

from spectral_jax.commands import flags
from spectral_jax.files import read_json, write_text
from spectral_jax.reporting import write_report, write_study_report
from spectral_jax.reporting.findings import findings, with_findings
from spectral_jax.studies.registration import read_registration
from spectral_jax.studies.results import STUDY_FILE, collect

EXPERIMENTS = pathlib.Path("experiments")  # of a clone, if this is started in one
RESULTS = EXPERIMENTS / "results"
PAGES = (EXPERIMENTS.parent / "README.md", RESULTS / "README.md")


def main() -> None:
    folder = flags.path(WORKDIR)
    if not (folder / STUDY_FILE).exists():
        print(f"report: {write_report(folder)}")
        return
    name = read_json(folder / STUDY_FILE, "restore it from a copy")["name"]
    # a registration lies beside its study's file
    collect(folder, read_registration(EXPERIMENTS / "studies" / f"{name}.py"))
    print(f"report: {write_study_report(folder)}")
    for page in PAGES:
        if page.exists():
            write_text(page, with_findings(page.read_text(), findings(RESULTS)))


if __name__ == "__main__":
    WORKDIR = flags.define_workdir()
    flags.run(main)
