"""The commands: `python -m experiments.NAME --help`."""

import signal
import sys

from spectral_jax import allocator

if sys.argv[0] == "-m":  # so it is while Python looks for the command, before that imports jax
    allocator.restart()
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends imports without a traceback
