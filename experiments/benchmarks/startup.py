"""Seconds until something happens: imports, and the first training step, cold and cached.

python -m experiments.benchmarks.startup --out=DIR
"""

import os
import subprocess
import sys
import tempfile
import time

from experiments.benchmarks import timing

FIRST_STEP = """
import sys, time
start = time.perf_counter()
from experiments.benchmarks import step
ours = step.Ours(step.CASES[sys.argv[1]], spectral="midband")
ours.train()
print(time.perf_counter() - start)
"""


def seconds(code: str, *arguments: str, cache: str = "") -> float:
    """Wall time of a new Python process, from its start to its end."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=True, capture_output=True
    )
    return time.perf_counter() - start


def measure(quick: bool, repetitions: int) -> list[timing.Result]:
    imports = {
        "spectral_jax.losses": lambda: seconds("import spectral_jax.losses"),
        "jax alone": lambda: seconds("import jax"),
        "experiments.train": lambda: seconds("import experiments.train"),
    }
    results = [timing.compare("import in a new process", imports, min(repetitions, 3))]
    names = ("quick",) if quick else ("unet16", "unet64", "transunet")
    for name in names:
        with tempfile.TemporaryDirectory() as cache:
            cold, *warm = (seconds(FIRST_STEP, name, cache=cache) for _ in range(3))
        target = "below 5" if name.startswith("unet") else ""
        results += [
            timing.fact(f"{name}: process to the end of the first step, cold", cold, "s"),
            timing.fact(f"{name}: the same, compiled before", min(warm), "s", target),
        ]
    return results


if __name__ == "__main__":
    timing.run("startup", measure)
