"""Seconds until something happens: imports, the first training step, one volume predicted.

python -m experiments.benchmarks.startup --out=DIR
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import nibabel
import numpy as np

from experiments.benchmarks import timing

# PyTorch, which TensorBoard's writer imports where it is installed, is none of our dependencies
HIDE_TORCH = "import sys; sys.modules['torch'] = None\n"
FIRST_STEP = """
from experiments.benchmarks import step
step.Ours(step.CASES[sys.argv[1]], spectral="midband").train()
"""
COMMAND = """
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def seconds(code: str, *arguments: str, cache: str = "") -> float:
    """Wall time of a new Python process, from its start to its end."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-c", HIDE_TORCH + code, *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments}: exit status {done.returncode}\n{done.stderr}")
    return time.perf_counter() - start


def prediction(quick: bool) -> Iterator[timing.Result]:
    """`experiments.predict` on a file, after a short `experiments.train`."""
    configuration = "tiny" if quick else "quickstart"
    shape = (32, 32, 4) if quick else (256, 256, 64)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        train = (
            f"--config=experiments/configs/{configuration}.py",
            "--config.data.name=mni152",
            "--config.train.epochs=0.1",
            "--config.train.validate_every=0.1",
            f"--workdir={root / 'run'}",
        )
        seconds(COMMAND, "experiments.train", *train, cache=folder)
        scan = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(scan, np.eye(4)), root / "scan.nii.gz")
        predict = (
            "experiments.predict",
            f"--workdir={root / 'run'}",
            f"--input={root / 'scan.nii.gz'}",
            "--intensity=mri_percentile",
        )
        cold, *warm = (
            seconds(COMMAND, *predict, f"--output={root / str(i)}", cache=folder) for i in range(3)
        )
    what = f"experiments.predict, {' x '.join(map(str, shape))} NIfTI"
    yield timing.fact(f"{what}: cold", cold, "s")
    yield timing.fact(f"{what}: compiled before", min(warm), "s")


def measure(quick: bool, repetitions: int) -> Iterator[timing.Result]:
    imports = {
        "spectral_jax.losses": lambda: seconds("import spectral_jax.losses"),
        "jax alone": lambda: seconds("import jax"),
        "experiments.train": lambda: seconds("import experiments.train"),
    }
    yield timing.compare("import in a new process", imports, min(repetitions, 3))
    for name in ("quick",) if quick else ("unet16", "unet64", "transunet"):
        with tempfile.TemporaryDirectory() as cache:
            cold, *warm = (seconds(FIRST_STEP, name, cache=cache) for _ in range(3))
        target = "below 5" if name.startswith("unet") else ""
        yield timing.fact(f"{name}: process to the end of the first step, cold", cold, "s")
        yield timing.fact(f"{name}: the same, compiled before", min(warm), "s", target)
    yield from prediction(quick)


if __name__ == "__main__":
    timing.run("startup", measure)
