"""What the spectral term costs: alone, against a plain fft2 version, and as a share of a step.

python -m experiments.benchmarks.loss --out=DIR
"""

import math
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import step, timing
from spectral_jax.losses import SPECTRAL, dice_loss
from spectral_jax.losses.spectral import soft_band


def with_fft2(probabilities, targets, *, band, per_sample):
    """The same coefficients by whole complex spectra of both masks, as first written down."""
    p, m = (jnp.moveaxis(x[..., 1:], -1, 1) for x in (probabilities, targets))
    p, m = (x - x.mean((2, 3), keepdims=True) for x in (p, m))
    height, width = p.shape[2:]
    f, g = (jnp.fft.fft2(x, norm="forward") for x in (p, m))
    weights = np.ones((height, width))
    if band is not None:
        frequencies = (np.fft.fftfreq(size, 1 / size) for size in (height, width))
        radius = np.sqrt(sum(x**2 for x in np.meshgrid(*frequencies, indexing="ij")))
        radius[0, 0] = 1
        weights = band(radius)
    weights[0, 0] = 0

    def power(x, y):
        return jnp.sum(jnp.asarray(weights, p.dtype) * (x * y.conj()).real, axis=(2, 3))

    cross, a, b = power(f, g), power(f, f), power(g, g)
    if per_sample:
        return 1 - jnp.mean(cross / jnp.sqrt((a + 1e-6) * (b + 1e-6)))
    cross, a, b = (x.mean(0) for x in (cross, a, b))
    return 1 - jnp.mean((2 * cross + 1e-6) / (a + b + 1e-6))


def masks(batch, size, classes):
    """Softmax of random logits, and one-hot blobs in which every class occurs."""
    logits = jax.random.normal(jax.random.key(0), (batch, size, size, classes))
    labels = step.blobs(batch, size, classes)
    return jax.nn.softmax(logits), jax.nn.one_hot(labels, classes)


def measure(quick: bool, repetitions: int) -> Iterator[timing.Result]:
    batch, size, classes = (2, 32, 3) if quick else (8, 224, 9)
    p, m = masks(batch, size, classes)
    plain = {
        "paper": partial(with_fft2, band=None, per_sample=True),
        "midband": partial(with_fft2, band=soft_band(13.0, 1.0), per_sample=False),
    }
    compiled, transforms = {}, {}
    losses = {**SPECTRAL, "dice": dice_loss} | {f"{k} by fft2": v for k, v in plain.items()}
    for name, loss in losses.items():
        lowered = jax.jit(jax.value_and_grad(loss)).lower(p, m)
        compiled[name] = lowered.compile()
        text = compiled[name].as_text() or ""
        transforms[name] = text.count(" fft(")
    for name in plain:
        ours, theirs = (compiled[key](p, m)[0] for key in (name, f"{name} by fft2"))
        assert math.isclose(float(ours), float(theirs), rel_tol=1e-4), (name, ours, theirs)

    def side(name):
        return lambda: jax.block_until_ready(compiled[name](p, m))

    shape = f"value and gradient, {batch} x {size} x {size} x {classes}"
    yield from (
        timing.compare(
            f"{name}, {shape}",
            {name: side(name), "fft2": side(f"{name} by fft2"), "dice": side("dice")},
            repetitions,
            target="of fft2, at least 1.5",
        )
        for name in plain
    )
    for name, program in compiled.items():
        memory = program.memory_analysis()
        if memory is not None:
            size_mib = memory.temp_size_in_bytes / 2**20
            yield timing.fact(f"{name}: temporary memory", size_mib, "MiB")
    # forward: one of the prediction, one of the truth; backward: one of the prediction
    yield timing.fact("midband: transforms in value and gradient", transforms["midband"], "", "3")

    case = step.CASES["quick" if quick else "unet64"]
    steps = {
        name: step.Ours(case, spectral=name, batch=None if quick else 8)
        for name in ("none", "paper", "midband")
    }
    yield timing.compare(
        f"training step of {case.name}, 8 images" if not quick else "training step",
        {name: ours.train for name, ours in steps.items()},
        repetitions,
        target="`paper` at most 1.01, `midband` 1.03",
    )


if __name__ == "__main__":
    timing.run("loss", measure)
