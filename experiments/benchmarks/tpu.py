"""Training steps compiled for TPU slices, and the compiler's estimates of them: not measurements.

    pip install -e '.[tpu]'
    python -m experiments.benchmarks.tpu --out=experiments/benchmarks/results/tpu

Each program takes minutes to compile, and is left alone where its file is there already.
"""

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from absl import app

from experiments.benchmarks import timing
from spectral_jax.files import read_json

UNET_64 = "--config.model.unet.widths=(64,128,256,512,1024)"
NETWORKS = {
    "unet64": ("synapse_transunet", "--config.model.name=unet", UNET_64),
    "transunet": ("synapse_transunet",),
    "unet3d": ("hippocampus_3d",),
}
TOPOLOGIES = {"v5e:2x2": 4, "v5e:16x16": 256}
SPECTRAL = ("none", "paper", "midband")
PER_CHIP = 8


def programs() -> Iterator[tuple[str, list[str]]]:
    """The name of each program and the flags of `experiments.train` that compile it."""
    for topology, chips in TOPOLOGIES.items():
        for network, (config, *changes) in NETWORKS.items():
            for spectral in SPECTRAL:
                name = f"{network}_{topology.replace(':', '-')}_{spectral}"
                yield (
                    name,
                    [
                        f"--config=experiments/configs/{config}.py",
                        *changes,
                        "--config.model.bfloat16",
                        f"--config.objective.spectral={spectral}",
                        f"--config.train.batch_size={PER_CHIP * chips}",
                        "--dry_run",
                        f"--topology={topology}",
                    ],
                )


def table(folder: pathlib.Path) -> str:
    """The programs whose files are there, a line each."""
    lines = [
        "| program, 8 examples a chip | cycles, millions | share of peak | GFLOP | GB moved "
        "| memory, GiB | forward | backward | loss | augmentation | optimiser | sums sent, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, _ in programs():
        file = folder / f"{name}.json"
        if not file.exists():
            continue
        plan: dict[str, Any] = read_json(file, "run experiments.benchmarks.tpu again")
        found = plan["estimates"]
        parts = ("network, forward", "network, backward", "loss", "augmentation", "optimizer")
        shares = " | ".join(f"{found['shares'].get(part, 0):.1%}" for part in parts)
        sent = sum(sum(sizes) for sizes in plan["collectives"].values()) / 2**20
        lines.append(
            f"| {name.replace('_', ', ')} | {found['cycles'] / 1e6:.1f} "
            f"| {found['share_of_peak']:.0%} | {plan['operations'] / 1e9:.0f} "
            f"| {plan['moved_bytes'] / 1e9:.1f} | {plan['memory_bytes'] / 2**30:.1f} "
            f"| {shares} | {sent:.1f} |"
        )
    return "\n".join(lines)


def main(_) -> None:
    out = pathlib.Path(timing.OUT.value or "tpu").expanduser()
    out.mkdir(parents=True, exist_ok=True)
    for name, options in programs():
        file = out / f"{name}.json"
        if file.exists():
            continue
        print(f"{name} ...", flush=True)
        command = [sys.executable, "-m", "experiments.train", *options, f"--plan={file}"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        (out / f"{name}.txt").write_text(ended.stdout)
    print(table(out))


if __name__ == "__main__":
    app.run(main)
