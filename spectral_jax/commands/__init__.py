"""The commands: `spectral-jax NAME --help`, or `python -m experiments.NAME` in a clone."""

import signal
import sys

from spectral_jax import allocator


def start_process() -> None:
    """What has to come before jax is imported."""
    allocator.restart()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback


if sys.argv[0] == "-m":  # so it is while Python looks for the command
    start_process()
