"""Writes the report of a run: `python -m experiments.report --workdir=RUN`."""

from absl import app, flags

from spectral_jax.reporting import write_report

WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)


def main(_):
    print(write_report(WORKDIR.value))


if __name__ == "__main__":
    app.run(main)
