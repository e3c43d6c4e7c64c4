"""Correlation between the Fourier spectra of predicted and true masks.

The objective of arXiv 2401.10373 adds "one minus a correlation coefficient between the frequency
components" of both masks to a spatial loss, but its formula is not public. The options here span
the plausible readings, and presets choose among them:

* `PRESETS["paper"]`, the nearest to the words: complex spectrum, all frequencies but the mean,
  correlation, per sample. By Parseval's theorem it *is* Pearson's correlation over pixels (on hard
  masks: Matthews'), and is computed as such. It cannot see the gain or offset of a prediction.
* `PRESETS["concordance"]`, the control of `midband`: the same coefficient and pooling over the full
  band, which makes it spatial, by the same theorem. What `midband` has over it is the band's.
* `PRESETS["midband"]`, our design: a soft band around 13 cycles per image, concordance, pooled over
  the batch. It weighs missed objects up against ragged edges, is 1 only where both masks are equal,
  and its gradient is bounded.

Left out on purpose: phase alone (one pixel of shift destroys it), coherence over the batch (always
1 for one sample), and the modulus of the coefficient (an inverted mask would be perfect).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from spectral_jax.losses.activation import AnyArray, check_option
from spectral_jax.losses.spatial import (
    POOLINGS,
    AxisName,
    Pooling,
    Powers,
    Valid,
    centred,
    centred_powers,
    mean_over_devices,
    mean_over_present,
    prepare,
    present_classes,
    sum_over_devices,
)

Spectrum = Literal["complex", "magnitude", "log_magnitude"]
Normalisation = Literal["correlation", "concordance"]
SPECTRA = ("complex", "magnitude", "log_magnitude")
NORMALISATIONS = ("correlation", "concordance")

Band = Callable[[np.ndarray], np.ndarray]
"""Radial frequency in cycles per image `[*spectrum]` -> weights `[*spectrum]`, or
`[rings, *spectrum]` for bands that are correlated separately, then averaged."""


def soft_band(centre_cycles: float = 13.0, width: float = 1.0) -> Band:
    """Log-normal band, `exp(-(log(r / centre) / width)² / 2)`.

    Args:
      centre_cycles: where the weight is 1, in cycles per image; 13 is 0.06 cycles per pixel at
        224 pixels.
      width: in natural logarithms of frequency; 1 spans a factor e to either side.

    Raises:
      ValueError: unless both are positive.
    """
    if centre_cycles <= 0 or width <= 0:
        raise ValueError(
            f"centre_cycles={centre_cycles} and width={width} must both be positive numbers"
        )
    return lambda radius: np.exp(-0.5 * (np.log(radius / centre_cycles) / width) ** 2)


def power_band(exponent: float) -> Band:
    """Weights `r ** exponent`: 0 is the full band, positive exponents favour edges."""
    return lambda radius: (radius / radius.max()) ** exponent


def rings(count: int) -> Band:
    """`count` rings of equal width, correlated one by one: Fourier ring correlation.

    The rings reach from 1 cycle per image to the corner of the spectrum, so that every frequency
    is in exactly one.

    Raises:
      ValueError: if `count` is below 1, or a ring holds no frequency of the image at hand.
    """
    if count < 1:
        raise ValueError(f"count={count} rings; use at least 1")

    def band(radius):
        edges = np.linspace(1, radius.max(), count + 1)
        index = np.clip(np.digitize(radius, edges) - 1, 0, count - 1)
        weights = np.stack([index == ring for ring in range(count)]).astype(np.float64)
        sizes = weights.reshape(count, -1).sum(1)
        if not sizes.all():
            raise ValueError(
                f"{count} rings are too many for this image: {int((sizes == 0).sum())} are empty"
            )
        return weights

    return band


BANDS: dict[str, Callable[..., Band]] = {
    "soft_band": soft_band,
    "power_band": power_band,
    "rings": rings,
}
"""What makes a band, by name, for configurations."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "spectrum": "complex",
        "band": None,
        "normalisation": "correlation",
        "pooling": "sample",
    },
    "midband": {
        "spectrum": "complex",
        "band": soft_band(centre_cycles=13.0, width=1.0),
        "normalisation": "concordance",
        "pooling": "batch",
    },
    "concordance": {
        "spectrum": "complex",
        "band": None,
        "normalisation": "concordance",
        "pooling": "batch",
    },
}
"""Keywords of `spectral_correlation_loss` by name; the module's docstring explains them."""


def spectrum_weights(shape: tuple[int, ...], band: Band | None) -> np.ndarray:
    """Weights of the half spectrum of an image of `shape`, float64 `[rings, *half_spectrum]`.

    They hold the band, and 2 for each frequency that stands for its mirror image too; the mean
    (frequency zero) has none.
    """
    *leading, last = shape
    axes = [np.fft.fftfreq(size, 1 / size) for size in leading] + [np.fft.rfftfreq(last, 1 / last)]
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    mean = (0,) * len(shape)
    radius[mean] = 1.0  # for logarithms and negative powers; its weight is 0 in the end
    weights = np.ones_like(radius) if band is None else np.asarray(band(radius), np.float64)
    if weights.ndim == radius.ndim:
        weights = weights[None]
    if weights.shape[1:] != radius.shape:
        raise ValueError(f"the band has shape {weights.shape}, the half spectrum {radius.shape}")
    total = weights.sum(0)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and (total > 1e-30).all()):
        raise ValueError(
            "band weights must be finite and, but for the mean, positive somewhere for every "
            f"frequency (a free frequency lets errors hide); the least is {np.min(total)}. "
            "Widen the band"
        )
    mirrored = np.full(axes[-1].shape, 2.0)
    mirrored[0] = 1
    if last % 2 == 0:
        mirrored[-1] = 1
    weights = weights * mirrored
    weights[(slice(None), *mean)] = 0
    return weights


def half_spectrum(
    x: Float[Array, "*batch_and_spatial"], dimensions: int
) -> tuple[Float[Array, "*batch_and_half"], Float[Array, "*batch_and_half"]]:
    """Real and imaginary part of `rfftn(norm="forward")` over the last axes, as suits the backend.

    A TPU's compiler makes a hundred operations of a Fourier transform, and its matrix units have
    time to spare; CPU and GPU have libraries for it. The two ways agree to 1e-5 of the largest
    value.
    """
    return jax.lax.platform_dependent(
        x,
        tpu=partial(half_spectrum_by_products, dimensions=dimensions),
        default=partial(half_spectrum_by_fft, dimensions=dimensions),
    )


def half_spectrum_by_fft(x: Array, *, dimensions: int) -> tuple[Array, Array]:
    """`half_spectrum` by the backend's library."""
    f = jnp.fft.rfftn(x, axes=tuple(range(-dimensions, 0)), norm="forward")
    return f.real, f.imag


def half_spectrum_by_products(x: Array, *, dimensions: int) -> tuple[Array, Array]:
    """`half_spectrum` by products with the matrices of cosines and sines, axis by axis.

    "high" multiplies float32 in three bfloat16 parts on a TPU: six would take twice as long.
    """

    def waves(size, count):
        # of integers modulo the size, so that the angle of a high frequency is as exact
        angle = 2 * np.pi / size * (np.outer(np.arange(size), np.arange(count)) % size)
        return (jnp.asarray(wave / size, x.dtype) for wave in (np.cos(angle), -np.sin(angle)))

    def along(y, axis, matrix):
        return jnp.moveaxis(jnp.tensordot(y, matrix, (axis, 0), precision="high"), -1, axis)

    size = x.shape[-1]
    real, imaginary = (along(x, -1, wave) for wave in waves(size, size // 2 + 1))
    for axis in range(-dimensions, -1):
        cosine, sine = waves(x.shape[axis], x.shape[axis])
        real, imaginary = (
            along(real, axis, cosine) - along(imaginary, axis, sine),
            along(real, axis, sine) + along(imaginary, axis, cosine),
        )
    return real, imaginary


def spectral_powers(
    p: Float[Array, "batch *spatial classes"],
    m: Float[Array, "batch *spatial classes"],
    spectrum: Spectrum,
    band: Band | None,
    valid: Valid = None,
) -> Powers:
    """Weighted powers of two spectra, `[batch, classes, rings]`, in units of pixel variance."""
    if spectrum == "complex" and band is None:  # Parseval
        return Powers(*(power[..., None] for power in centred_powers(p, m, valid)))

    shape = p.shape[1:-1]
    weights = jnp.asarray(spectrum_weights(shape, band), p.dtype)
    axes = tuple(range(-len(shape), 0))

    def components(x):
        """Real numbers `[batch, classes, *half_spectrum]`: one or two arrays of them."""
        x = centred(x, valid)
        real, imaginary = half_spectrum(jnp.moveaxis(x, -1, 1), len(shape))
        if spectrum == "complex":
            return real, imaginary
        # the constant keeps the gradient of the root finite where the spectrum is zero
        magnitude = jnp.sqrt(real**2 + imaginary**2 + 1e-12)
        return (magnitude if spectrum == "magnitude" else jnp.log1p(math.prod(shape) * magnitude),)

    def total(x):
        return jnp.tensordot(x, jnp.moveaxis(weights, 0, -1), len(shape), precision="highest")

    def power(x, y):
        products = total(sum(a * b for a, b in zip(x, y, strict=True)))
        if spectrum == "complex":
            return products
        return products - total(x[0]) * total(y[0]) / jnp.sum(weights, axis=axes)

    x, y = components(p), components(m)
    powers = Powers(power(x, y), power(x, x), power(y, y))
    if valid is None:
        return powers
    share = share_valid(valid, p.dtype)[:, None, None]
    return Powers(*(power / jnp.where(share > 0, share, 1) for power in powers))


def share_valid(valid: Valid, dtype: jnp.dtype) -> Float[Array, " batch"]:
    """The share of the pixels of each sample that count."""
    assert valid is not None
    return jnp.mean(valid, axis=tuple(range(1, valid.ndim)), dtype=dtype)


def coefficient(
    powers: Powers, normalisation: Normalisation, epsilon: float
) -> Float[Array, "*batch classes"]:
    """Normalises the cross-power by the powers and takes the mean over the rings."""
    cross, prediction, target = powers
    if normalisation == "correlation":
        rho = cross / jnp.sqrt((prediction + epsilon) * (target + epsilon))
    else:
        rho = (2 * cross + epsilon) / (prediction + target + epsilon)
    return jnp.mean(rho, axis=-1)


def pooled_powers(powers: Powers, weights: Num[AnyArray, " batch"], axis_name: AxisName) -> Powers:
    """Mean of the powers over the samples of the batch, as `weights` has them count."""
    total = sum_over_devices(jnp.sum(weights), axis_name)
    return Powers(
        *(
            sum_over_devices(jnp.tensordot(weights, power, 1), axis_name)
            / jnp.where(total > 0, total, 1)
            for power in powers
        )
    )


def spectral_correlation(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    spectrum: Spectrum = "complex",
    band: Band | None = None,
    normalisation: Normalisation = "correlation",
    pooling: Pooling = "sample",
    epsilon: float = 1e-6,
    valid: Valid = None,
) -> Float[Array, "*batch classes"]:
    r"""Correlation of the Fourier spectra of predicted and true masks, per class.

    With spectra `P` and `M` of the masks less their means, and weights `w` over frequencies `k`:

        C = Σ w Re(P M*),   A = Σ w |P|²,   B = Σ w |M|²
        correlation:  C / sqrt((A + ε)(B + ε))        concordance:  (2 C + ε) / (A + B + ε)

    Args:
      probabilities: `[batch, *spatial, classes]`, two or three spatial axes of any size, any
        float type; computed in float32, float64 stays float64.
      targets: one-hot, `[batch, *spatial, classes]`.
      spectrum: "complex"; or "magnitude" or "log_magnitude", whose means over frequencies are
        removed too. Both of those are blind to position and to complements.
      band: weights over frequencies, from `soft_band`, `power_band` or `rings`; None weighs all
        alike, which for the complex spectrum equals Pearson's correlation over pixels.
      normalisation: "correlation" ignores the gain of a prediction, "concordance" does not.
      pooling: "sample", or "batch" to add up C, A and B over the batch first, so that false
        positives on empty masks count.
      epsilon: in units of pixel variance; 1e-6 biases a mask of 30 pixels by 0.001.
      valid: `[batch, *spatial]`, true for the pixels that count. From both masks their means over
        these are taken, and the other pixels are set to 0: nothing differs there, and the full
        band is Pearson's correlation over the pixels that count. In a narrow band the hole blurs
        frequencies into each other. Pooled over the batch, a sample counts by its share of them.

    Returns:
      `[batch, classes]`, or `[classes]` for `pooling="batch"`; in [-1, 1].

    Raises:
      ValueError: for unequal shapes, an unknown option, or a band with a free frequency.

    >>> import jax
    >>> masks = jax.nn.one_hot(jax.random.randint(jax.random.key(0), (1, 8, 8), 0, 2), 2)
    >>> print(spectral_correlation(masks, masks, epsilon=0.0).round(4))
    [[1. 1.]]
    >>> print(spectral_correlation(1 - masks, masks, band=soft_band(2.0), epsilon=0.0).round(4))
    [[-1. -1.]]
    """
    check_option("spectrum", spectrum, SPECTRA)
    check_option("normalisation", normalisation, NORMALISATIONS)
    check_option("pooling", pooling, POOLINGS)
    p, m = prepare(probabilities, targets, include_background=True, valid=valid)
    powers = spectral_powers(p, m, spectrum, band, valid)
    if pooling == "batch":
        weights = jnp.ones(len(p), p.dtype) if valid is None else share_valid(valid, p.dtype)
        powers = pooled_powers(powers, weights, axis_name=None)
    return coefficient(powers, normalisation, epsilon)


def spectral_correlation_loss(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    include_background: bool = False,
    spectrum: Spectrum = "complex",
    band: Band | None = None,
    normalisation: Normalisation = "correlation",
    pooling: Pooling = "sample",
    epsilon: float = 1e-6,
    sample_weights: Num[AnyArray, " batch"] | None = None,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """One minus `spectral_correlation`, averaged over the classes that are present.

    A class counts where its true mask is neither empty nor full: in the sample, or with
    `pooling="batch"` in any sample of the batch. The loss says nothing about the mean of a mask,
    so it belongs beside Dice or cross-entropy. The Fourier transform joins opposite borders; pad
    the image if objects touch them and the band matters there.

    Args:
      probabilities: as for `spectral_correlation`.
      targets: as for `spectral_correlation`.
      include_background: whether the first class counts; of two classes it would count twice.
      spectrum: as for `spectral_correlation`, like the four that follow.
      band: see there.
      normalisation: see there.
      pooling: see there.
      epsilon: see there.
      sample_weights: `[batch]`; 0 removes a sample, such as one that pads the batch.
      valid: as for `spectral_correlation`.
      axis_name: the mesh axis, or axes, that split the batch, inside `jax.shard_map`: powers and
        means then run over the whole batch, and only a few scalars are exchanged.

    Returns:
      A scalar in [0, 2]; 0, with a zero gradient, if no class is present.

    Raises:
      ValueError: as `spectral_correlation`.

    >>> import jax
    >>> masks = jax.nn.one_hot(jax.random.randint(jax.random.key(0), (2, 32, 32), 0, 2), 2)
    >>> print(f"{spectral_correlation_loss(masks, masks, **PRESETS['midband']):.4f}")
    0.0000
    """
    check_option("spectrum", spectrum, SPECTRA)
    check_option("normalisation", normalisation, NORMALISATIONS)
    check_option("pooling", pooling, POOLINGS)
    p, m = prepare(probabilities, targets, include_background, valid)
    powers = spectral_powers(p, m, spectrum, band, valid)
    if sample_weights is None:
        sample_weights = jnp.ones(p.shape[0], p.dtype)
    sample_weights = sample_weights.astype(p.dtype)
    present = present_classes(m, valid) * sample_weights[:, None]
    if pooling == "batch":
        if valid is not None:
            sample_weights = sample_weights * share_valid(valid, p.dtype)
        powers = pooled_powers(powers, sample_weights, axis_name)
        present = sum_over_devices(jnp.sum(present, axis=0), axis_name) > 0
        losses = 1 - coefficient(powers, normalisation, epsilon)
        return mean_over_present(losses, present.astype(p.dtype), axis_name=None)
    losses = 1 - coefficient(powers, normalisation, epsilon)
    return mean_over_present(losses, present, axis_name)


def focal_frequency_loss(
    probabilities: Float[AnyArray, "batch *spatial classes"],
    targets: Num[AnyArray, "batch *spatial classes"],
    *,
    alpha: float = 1.0,
    include_background: bool = False,
    valid: Valid = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Focal frequency loss (arXiv 2012.12821): squared spectral error, weighted by its own size.

    `mean(w |P - M|²)` over frequencies of orthonormal transforms, with `w = |P - M|^alpha` divided
    by its maximum over the frequencies of that image and class, and kept out of the gradient.

    Args:
      probabilities: `[batch, *spatial, classes]`, any float type.
      targets: one-hot, `[batch, *spatial, classes]`.
      alpha: how strongly hard frequencies are favoured; 0 is the mean squared error over pixels.
      include_background: whether the first class counts.
      valid: `[batch, *spatial]`, true for the pixels that count; nothing differs at the others, and
        the mean is over as many frequencies as pixels count.
      axis_name: the mesh axes that split the batch, inside `jax.shard_map`.

    Returns:
      A scalar, at least 0.
    """
    p, m = prepare(probabilities, targets, include_background, valid)
    axes = tuple(range(2, p.ndim))
    real, imaginary = half_spectrum(jnp.moveaxis(p - m, -1, 1), len(axes))
    error = math.prod(p.shape[1:-1]) * (real**2 + imaginary**2)  # of orthonormal transforms
    focus = jax.lax.stop_gradient(error) ** (alpha / 2)
    most = jnp.max(focus, axis=axes, keepdims=True)
    focus = focus / jnp.where(most > 0, most, 1)
    shape = p.shape[1:-1]
    mirrored = spectrum_weights(shape, None)[0]
    mirrored[(0,) * len(shape)] = 1  # here the mean counts
    weighted = jnp.sum(jnp.asarray(mirrored, p.dtype) * focus * error, axis=axes) / math.prod(shape)
    if valid is not None:
        share = share_valid(valid, p.dtype)[:, None]
        weighted = weighted / jnp.where(share > 0, share, 1)
    return mean_over_devices(weighted, axis_name)
