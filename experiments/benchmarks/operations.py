"""Why a step takes what it takes: its convolutions alone, against PyTorch's and against a bound.

python -m experiments.benchmarks.operations --out=DIR
"""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks import step, timing
from spectral_jax.models import compiler_options

Layer = tuple[int, int, int, int]  # images, pixels along an axis, channels in and out


def convolutions(case: step.Case) -> list[Layer]:
    """Those of size three of a UNet."""
    widths = case.options["widths"]
    sizes = [case.size // 2**level for level in range(len(widths))]
    encoder = zip(sizes, (1, *widths[:-1]), widths, strict=True)
    decoder = [(size, 2 * width, width) for size, width in zip(sizes, widths, strict=True)][:-1]
    layers = [
        (case.batch, size, channels, width)
        for size, inputs, width in itertools.chain(encoder, decoder)
        for channels in (inputs, width)
    ]
    return layers


def ours(layers: list[Layer]) -> dict[str, Callable[[], Any]]:
    """Functions that run all layers forward, or one of their two gradients."""

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    programs = {
        "forward": lambda x, kernel, g: convolve(x, kernel),
        "image gradients": lambda x, kernel, g: jax.vjp(lambda x: convolve(x, kernel), x)[1](g),
        "kernel gradients": lambda x, kernel, g: jax.vjp(lambda k: convolve(x, k), kernel)[1](g),
    }
    arrays = [
        (jnp.ones((n, s, s, i)), jnp.ones((3, 3, i, o)), jnp.ones((n, s, s, o)))
        for n, s, i, o in layers
    ]

    def run(program):
        return lambda: [jax.block_until_ready(program(*each)) for each in arrays]

    return {
        name: run(jax.jit(program, compiler_options=compiler_options()))
        for name, program in programs.items()
    }


def pytorchs(layers: list[Layer]) -> dict[str, Callable[[], Any]]:
    """The same in PyTorch, channels last."""
    import torch

    def ones(*shape):
        array = torch.ones(shape).contiguous(memory_format=torch.channels_last)
        return array.requires_grad_()

    arrays = [(ones(n, i, s, s), ones(o, i, 3, 3), ones(n, o, s, s)) for n, s, i, o in layers]

    def gradients(which):
        needed = [which == 0, which == 1, False]
        ones_ = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, needed)

        def run():
            with torch.no_grad():
                for x, kernel, g in arrays:
                    torch.ops.aten.convolution_backward(g, x, kernel, None, *ones_)

        return run

    def forward():
        with torch.no_grad():
            for x, kernel, _ in arrays:
                torch.nn.functional.conv2d(x, kernel, padding=1)

    return {
        "forward": forward,
        "image gradients": gradients(0),
        "kernel gradients": gradients(1),
    }


def measure(quick: bool, repetitions: int) -> Iterator[timing.Result]:
    rate = timing.matrix_product_rate(64 if quick else 2048, repetitions)
    yield timing.fact("matrix product", rate / 1e9, "GFLOP/s")
    for name in ("quick",) if quick else ("unet16", "unet64"):
        case = step.CASES[name]
        layers = convolutions(case)
        operations = sum(18 * n * s * s * i * o for n, s, i, o in layers)
        sides = {"ours": ours(layers)}
        if importlib.util.find_spec("torch") is not None:
            sides["PyTorch"] = pytorchs(layers)
        yield from (
            timing.compare(
                f"{case.name}: its {len(layers)} convolutions, {kind}",
                {side: functions[kind] for side, functions in sides.items()},
                repetitions,
                bound=operations / rate,
            )
            for kind in sides["ours"]
        )


if __name__ == "__main__":
    timing.run("operations", measure)
