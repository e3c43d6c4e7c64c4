"""Writes the report of a run again: `report.html` in its folder, one self-contained page.

python -m experiments.report --workdir=runs/quickstart
"""

from experiments import flags
from spectral_jax.reporting import write_report


def main() -> None:
    print(f"report: {write_report(flags.path(WORKDIR))}")


if __name__ == "__main__":
    WORKDIR = flags.define_workdir()
    flags.run(main)
