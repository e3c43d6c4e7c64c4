"""What the benchmarks share: repetitions taken in turns, and a result as a table and as JSON."""

import gc
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from spectral_jax.files import write_json
from spectral_jax.models import compiler_options
from spectral_jax.versions import versions

OUT = flags.DEFINE_string("out", "", "Folder for NAME.json; nothing is written without it.")
QUICK = flags.DEFINE_bool("quick", False, "Tiny sizes, to see that everything runs.")
REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Of each side of a comparison.")

Result = dict[str, Any]


def compare(
    what: str,
    sides: dict[str, Callable[[], Any]],
    repetitions: int,
    *,
    target: str = "",
    bound: float | None = None,
) -> Result:
    """Times functions in turns, A B A B, so that a change of the machine's load meets them alike.

    Args:
      what: is compared.
      sides: by name, ours first; each must wait for its own result.
      repetitions: of each.
      target: for the ratios of the other sides' times to ours, in words.
      bound: seconds that no side can beat.

    Returns:
      Seconds of each side and, of each but the first, its time over ours in the same turn; each
      as median and quartiles. With a bound, also its share of each side's median.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, side in sides.items():
            gc.collect()
            side()  # not timed: caches and memory are still those of the turn before
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    ours, *others = sides
    ratios = {name: spread(np.divide(seconds[name], seconds[ours])) for name in others}
    result: Result = {
        "what": what,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratio_to_" + ours: ratios,
        "repetitions": repetitions,
        "target": target,
    }
    if bound is not None:
        result["share_of_bound"] = {
            name: bound / value["median"] for name, value in result["seconds"].items()
        }
    return result


def fact(what: str, value: float, unit: str, target: str = "") -> Result:
    """One figure that is not a comparison of times."""
    return {"what": what, "value": float(value), "unit": unit, "target": target}


def matrix_product_rate(size: int, repetitions: int) -> float:
    """FLOP/s of the fastest square matrix product: what a network could reach at best."""
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a, compiler_options=compiler_options())
    seconds = []
    for _ in range(4 * repetitions):
        start = time.perf_counter()
        jax.block_until_ready(product(a))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def spread(values: Any) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "quartile1": float(low), "quartile3": float(high)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    optional = {}
    for package in ("torch", "monai", "medpy"):
        try:
            optional[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            optional[package] = "not installed"
    cpu = pathlib.Path("/proc/cpuinfo")
    model = platform.processor()
    if cpu.exists():
        names = [x for x in cpu.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":")[1].strip() if names else model
    load = os.getloadavg()[0]
    return {
        **versions(),
        **optional,
        "cpu": model,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_before": round(load, 1),
    }


def markdown(name: str, document: dict[str, Any]) -> str:
    """The figures of one benchmark as a table."""
    lines = [
        f"### {name}",
        "",
        "| what | figure | ratio to ours (quartiles) | share of the bound | target |",
        "|---|---|---|---|---|",
    ]
    for result in document["results"]:
        target = result["target"]
        if "value" in result:
            lines.append(
                f"| {result['what']} | {result['value']:.4g} {result['unit']} | | | {target} |"
            )
            continue
        ratios = next(values for key, values in result.items() if key.startswith("ratio_to_"))
        for side, value in result["seconds"].items():
            ratio = ratios.get(side)
            shown = (
                "1"
                if ratio is None
                else (
                    f"{ratio['median']:.2f} ({ratio['quartile1']:.2f} to {ratio['quartile3']:.2f})"
                )
            )
            shown_target = target if ratio is not None else ""
            share = result.get("share_of_bound", {}).get(side)
            shown_share = "" if share is None else f"{share:.0%}"
            lines.append(
                f"| {result['what']}: {side} | {1000 * value['median']:.4g} ms | {shown} "
                f"| {shown_share} | {shown_target} |"
            )
    return "\n".join(lines) + "\n"


def run(name: str, measure: Callable[[bool, int], Iterable[Result]]) -> None:
    """Parses flags, measures, writes each result to the JSON, and prints the table."""

    def main(_):
        logging.set_verbosity(logging.WARNING)
        out = pathlib.Path(OUT.value).expanduser() if OUT.value else None
        before = machine()
        results: list[Result] = []
        document = {"benchmark": name, "quick": QUICK.value, "machine": before, "results": results}
        for result in measure(QUICK.value, 2 if QUICK.value else REPETITIONS.value):
            results.append(result)
            if out is not None:  # each time, so that a run cut short leaves what it has
                out.mkdir(parents=True, exist_ok=True)
                write_json(out / f"{name}.json", document)
        print(json.dumps(before))
        print(markdown(name, document))

    jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS"))
    app.run(main)
