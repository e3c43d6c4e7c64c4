"""Gradient accumulation: the same batch in two micro-batches and at once; time and memory.

python -m experiments.benchmarks.accumulate --out=DIR
"""

from collections.abc import Iterator

from experiments.benchmarks import timing
from experiments.benchmarks.step import CASES, Ours


def temporary_gibibytes(side: Ours) -> float:
    """Memory of the compiled step beside its arguments and results."""
    memory = side.program.memory_analysis()
    assert memory is not None  # XLA's CPU client tells
    return memory.temp_size_in_bytes / 2**30


def measure(quick: bool, repetitions: int) -> Iterator[timing.Result]:
    for name in ("quick",) if quick else ("unet16", "unet64"):
        case = CASES[name]
        halves, whole = Ours(case, accumulate=2), Ours(case)
        sides = {"in two micro-batches": halves.train, "at once": whole.train}
        few = repetitions if name == "unet16" else min(repetitions, 3)
        what = f"{case.name}, {case.batch} images: training step"
        yield timing.compare(what, sides, few, target="at least 0.87")
        for side, ours in (("at once", whole), ("in two micro-batches", halves)):
            memory = temporary_gibibytes(ours)
            yield timing.fact(f"{case.name}: temporary memory, {side}", memory, "GiB")


if __name__ == "__main__":
    timing.run("accumulate", measure)
