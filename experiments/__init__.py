"""The commands: `python -m experiments.NAME --help`."""

import sys

from spectral_jax import allocator

if sys.argv[0] == "-m":  # so it is while Python looks for the command, before that imports jax
    allocator.restart()
