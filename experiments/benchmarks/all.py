"""Runs every benchmark, each in a process of its own, and makes one table of their results.

python -m experiments.benchmarks.all --out=DIR
"""

import json
import pathlib
import subprocess
import sys

from absl import app

from experiments.benchmarks import timing

NAMES = (
    *("step", "accumulate", "operations", "loss", "pipeline"),
    *("metrics", "startup", "scale", "scaling"),
)


def main(_) -> None:
    out = pathlib.Path(timing.OUT.value or "benchmarks").expanduser()
    options = [f"--out={out}", f"--quick={timing.QUICK.value}"]
    options.append(f"--repetitions={timing.REPETITIONS.value}")
    tables: list[str] = []
    failed: list[str] = []
    for name in NAMES:
        print(f"{name} ...", flush=True)
        command = [sys.executable, "-m", f"experiments.benchmarks.{name}", *options]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            failed.append(name)
            continue
        document = json.loads((out / f"{name}.json").read_text())
        if not tables:
            facts = (f"{key} {value}" for key, value in document["machine"].items())
            tables.append(", ".join(facts) + "\n")
        tables.append(timing.markdown(name, document))
    tables += [f"### {name}\n\nfailed\n" for name in failed]
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text("\n".join(tables))
    print("\n".join(tables))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
