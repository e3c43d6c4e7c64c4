"""Studies, benchmarks, examples and results; the commands too: `python -m experiments.NAME`."""

from spectral_jax import commands

__path__.extend(commands.__path__)
