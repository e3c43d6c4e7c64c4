"""The console command: `spectral-jax NAME --option=value ...`, or `python -m spectral_jax`."""

import difflib
import runpy
import sys

from spectral_jax import __version__, commands

COMMANDS = {
    "prepare": "check a data set's raw files and write its records",
    "train": "train a network, evaluate it and write a report",
    "crossvalidate": "train every fold, and score each case once",
    "evaluate": "score a trained network, in or out of distribution",
    "measure": "measure robustness, calibration, explanations and more",
    "predict": "segment your own files with a trained network",
    "report": "rebuild the report of a run",
    "export": "write a trained network as StableHLO or ONNX",
    "study": "train and measure several losses on several seeds",
}
HELP = (
    "usage: spectral-jax COMMAND --option=value ...\n\n"
    + "".join(f"  {name:<15}{purpose}\n" for name, purpose in COMMANDS.items())
    + "\nspectral-jax COMMAND --help shows a command's options. The first thing to try:\n\n"
    "  spectral-jax train --config=quickstart --workdir=runs/quickstart\n"
)
EXIT_USER_ERROR = 2


def main() -> None:
    """Runs the command that the first argument names."""
    commands.start_process()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "-help", "--help"):
        print(HELP, end="")
    elif name == "--version":
        print(f"spectral_jax {__version__}")
    elif name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"{commands.__name__}.{name}", run_name="__main__", alter_sys=True)
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"spectral-jax: no command {name!r}{hint}\n\n{HELP}", end="", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
