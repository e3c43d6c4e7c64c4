"""What a step exchanges between devices, from compiled programs, and a roofline on paper.

python -m experiments.benchmarks.scaling --out=DIR

Of the programs that `experiments.benchmarks.tpu` compiled for TPU slices, it repeats what their
compiler estimates.
"""

import json
import os
import pathlib
import subprocess
import sys

from experiments.benchmarks import timing, tpu
from spectral_jax.files import read_json
from spectral_jax.training.program import find_collectives

PROGRAM = """
import json, sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
from experiments.benchmarks import step
size = int(sys.argv[2])
case = step.Case("", "unet", {"widths": (8, 16)}, size, int(sys.argv[1]))
ours = step.Ours(case, spectral="midband")
parameters = sum(x.size for x in jax.tree.leaves(ours.state.params))
print(json.dumps({"text": ours.program.as_text(), "parameters": parameters}))
"""

# dense bfloat16 peak in FLOP/s and memory in bytes/s, from the makers' data sheets
DEVICES = {"H100 SXM": (989e12, 3.35e12), "TPU v5e": (197e12, 0.819e12)}


def unet_work(widths: tuple[int, ...], size: int) -> tuple[float, float]:
    """Multiply-adds and bytes (bfloat16) of the convolutions of one forward pass of one image."""
    work = traffic = 0.0

    def layer(pixels, inputs, outputs, window):
        nonlocal work, traffic
        work += pixels * inputs * outputs * window
        traffic += 2 * pixels * (inputs + outputs)

    before = 1
    for level, width in enumerate(widths):
        pixels = (size / 2**level) ** 2
        layer(pixels, before, width, 9)
        layer(pixels, width, width, 9)
        before = width
        if level < len(widths) - 1:
            layer(pixels / 4, widths[level + 1], 4 * width, 1)
            layer(pixels, 2 * width, width, 9)
            layer(pixels, width, width, 9)
    return work, traffic


def measure(quick: bool, repetitions: int) -> list[timing.Result]:
    results = []
    for devices, size in ((2, 32),) if quick else ((2, 32), (4, 32), (8, 32), (8, 64)):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(devices), str(size)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            check=True,
            capture_output=True,
            text=True,
        )
        program = json.loads(run.stdout)
        messages = find_collectives(program["text"])
        size_bytes = sum(sum(message.arrays) for message in messages)
        what = f"{devices} devices, an image of {size} px each"
        results += [
            timing.fact(f"{what}: collectives in a step", len(messages), ""),
            timing.fact(
                f"{what}: bytes over the parameters'",
                size_bytes / (4 * program["parameters"]),
                "",
                "about 1, whatever the size",
            ),
        ]
    widths = (64, 128, 256, 512, 1024)
    work, traffic = unet_work(widths, 224)
    # a step: forward and two such passes back; each multiply-add is two operations
    operations, moved = 3 * 2 * work, 3 * traffic
    results.append(
        timing.fact("UNet 64, 224 px: operations of a step, one image", operations / 1e9, "GFLOP")
    )
    results.append(
        timing.fact(
            "the same: activations moved, if each layer reads and writes once", moved / 2**20, "MiB"
        )
    )
    for name, (peak, memory) in DEVICES.items():
        compute, move = operations / peak, moved / memory
        results.append(
            timing.fact(
                f"{name}, on paper: max({operations / 1e9:.0f} GFLOP / {peak / 1e12:.0f} TFLOP/s, "
                f"{moved / 1e9:.2f} GB / {memory / 1e12:.2f} TB/s) = at most",
                1 / max(compute, move),
                "images/s",
            )
        )
    return results + slices(pathlib.Path(__file__).parent / "results" / "tpu")


def slices(folder: pathlib.Path) -> list[timing.Result]:
    """Of each program in a folder of `experiments.benchmarks.tpu`: time and share of the peak."""
    results = []
    for name, _ in tpu.programs():
        file = folder / f"{name}.json"
        if file.exists():
            found = read_json(file, "run experiments.benchmarks.tpu again")["estimates"]
            what = f"{name}, by the TPU's compiler"
            results += [
                timing.fact(f"{what}: a step", 1e3 * found["seconds"], "ms, an estimate"),
                timing.fact(f"{what}: share of the peak", found["share_of_peak"], ""),
            ]
    return results


if __name__ == "__main__":
    timing.run("scaling", measure)
