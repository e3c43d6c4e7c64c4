"""Draws the pictures of docs/objective.md, and prints its numbers: python docs/pictures/make.py.

Everything that is drawn comes out of `spectral_jax.losses`. The mask is white matter in an axial
slice of the MNI152 template (extra `demo`).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from spectral_jax.data.datasets import mni152
from spectral_jax.losses import (
    PRESETS,
    SPECTRAL,
    harmonized_loss,
    power_band,
    soft_band,
    spectral_correlation,
)
from spectral_jax.losses.spectral import spectrum_weights

FOLDER = pathlib.Path(__file__).parent
SLICE = 62  # of the training slab: deep grey matter, both temporal lobes
MISSED = np.s_[134:166, 124:160]  # white matter that the drawn prediction leaves out

BANDS = {
    "full: the paper's words": None,
    "soft, 3 cycles": soft_band(3.0),
    "soft, 13 cycles: midband": PRESETS["midband"]["band"],
    "power, exponent 1": power_band(1.0),
}


def real_mask() -> tuple[np.ndarray, np.ndarray]:
    """Image and white-matter mask of one slice, `[height, width]`."""
    case = next(c for c in mni152.read(None).splits["train"] if c.name == f"axial_{SLICE:03d}")
    loaded = case.load()
    return loaded.image[0, ..., 0], (loaded.label[0] == 2).astype(np.float64)


def band_weights(shape, band) -> np.ndarray:
    """The band alone, without the 2 of mirrored frequencies; 0 for the mean."""
    weights = spectrum_weights(shape, band)[0]
    return np.divide(
        weights, spectrum_weights(shape, None)[0], where=weights > 0, out=np.zeros_like(weights)
    )


def draw_bands(mask: np.ndarray) -> None:
    """What is left of a mask: the loss correlates masks filtered with the root of the weights."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    axes = figure.subplots(2, len(BANDS))
    for (top, bottom), (name, band) in zip(axes.T, BANDS.items(), strict=True):
        weights = band_weights(mask.shape, band)
        top.plot(np.arange(1, 90), weights[0, 1:90], color="#0072b2")
        top.set(title=name, ylim=(0, 1.05), xlabel="cycles per image")
        seen = np.fft.irfft2(np.fft.rfft2(mask) * np.sqrt(weights), s=mask.shape)
        limit = np.abs(seen).max()
        bottom.imshow(seen, cmap="RdBu_r", vmin=-limit, vmax=limit)
        bottom.set_axis_off()
    axes[0, 0].set_ylabel("weight")
    save(figure, "bands.png")


def draw_parseval(mask: np.ndarray) -> None:
    """The full band against numpy's correlation over pixels, and a band that is really spectral."""
    rng = np.random.default_rng(0)
    predictions = []
    for _ in range(150):
        noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), rng.uniform(0.5, 12))
        p = np.roll(mask, rng.integers(-6, 7, 2), (0, 1)) + rng.uniform(0, 3) * noise / noise.std()
        predictions.append(1 / (1 + np.exp(-p)))
    predictions = np.stack(predictions)
    pearson = np.array([np.corrcoef(p.ravel(), mask.ravel())[0, 1] for p in predictions])
    # `power_band(0)` weighs all frequencies alike, and takes the way through the Fourier transform
    bands = {"full band": power_band(0.0), "soft band, 13 cycles": soft_band(13.0)}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, (name, band) in zip(axes, bands.items(), strict=True):
        with jax.enable_x64(True):
            correlation = spectral_correlation(
                jnp.asarray(predictions)[..., None],
                jnp.broadcast_to(mask, predictions.shape)[..., None],
                band=band,
                epsilon=0.0,
            )
        # numpy from here on: outside of that block JAX would round both sides to float32
        spectral = np.asarray(correlation)[:, 0]
        assert spectral.dtype == np.float64
        difference = np.abs(spectral - pearson)
        print(f"{name}: differs from numpy.corrcoef over pixels by at most {difference.max():.1e}")
        ax.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        ax.scatter(pearson, spectral, s=8, color="#d55e00")
        ax.set(title=name, xlabel="Pearson's correlation over pixels")
    axes[0].set_ylabel("correlation of the spectra")
    save(figure, "parseval.png")
    print("\n| prediction | numpy.corrcoef over pixels | full band, by Fourier | soft band |")
    print("|---|---|---|---|")
    blurred = ndimage.gaussian_filter(mask, 2)
    examples = {
        "blurred by 2 pixels": blurred,
        "moved by 4 pixels": np.roll(mask, 4, 1),
        "0.3 mask + 0.2": 0.3 * mask + 0.2,
        "inverted": 1 - mask,
    }
    for name, p in examples.items():
        with jax.enable_x64(True):
            row = [np.corrcoef(p.ravel(), mask.ravel())[0, 1]] + [
                spectral_correlation(
                    p[None, ..., None], mask[None, ..., None], band=band, epsilon=0.0
                ).item()
                for band in bands.values()
            ]
        print(f"| {name} | " + " | ".join(f"{value:.6f}" for value in row) + " |")


def draw_gradients(image: np.ndarray, mask: np.ndarray) -> None:
    """Which pixels each loss would change, for a mask with soft edges and one part missed."""
    found = mask.copy()
    found[MISSED] = 0
    foreground = 10 * (ndimage.gaussian_filter(found, 1.0) - 0.5)
    logits = jnp.stack([jnp.zeros_like(foreground), foreground], -1)[None]
    labels = jnp.asarray(mask, int)[None]
    targets = jax.nn.one_hot(labels, 2)

    def spectral_only(name):
        return lambda x: SPECTRAL[name](jax.nn.softmax(x), targets)

    losses = {
        "cross-entropy": lambda x: harmonized_loss(x, labels, spatial="ce", spectral=None),
        "Dice": lambda x: harmonized_loss(x, labels, spatial="dice", spectral=None),
        "spectral, paper": spectral_only("paper"),
        "spectral, midband": spectral_only("midband"),
        "control: matthews": spectral_only("matthews"),
        "control: focal_frequency": spectral_only("focal_frequency"),
    }
    figure = Figure(figsize=(10, 6), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    axes[0].imshow(image, cmap="gray")
    axes[0].contour(mask, [0.5], colors="#009e73", linewidths=0.6)
    axes[0].set_title("image and truth")
    axes[1].imshow(jax.nn.softmax(logits)[0, ..., 1], cmap="gray")
    axes[1].set_title("prediction")
    print("\n| loss | its value | share of the gradient on the missed part |")
    print("|---|---|---|")
    missed = (mask - found) > 0
    for ax, (name, loss) in zip(axes[2:], losses.items(), strict=True):
        value, gradient = jax.value_and_grad(loss)(logits)
        descent = -np.asarray(gradient[0, ..., 1])
        limit = np.percentile(np.abs(descent), 99.8)
        ax.imshow(descent, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ax.set_title(name)
        share = np.abs(descent[missed]).sum() / np.abs(descent).sum()
        print(f"| {name} | {value:.3f} | {share:.0%} |")
    for ax in axes:
        ax.set_axis_off()
    save(figure, "gradients.png")


def save(figure: Figure, name: str) -> None:
    """Writes a picture that is the same whenever it is drawn anew."""
    figure.savefig(FOLDER / name, dpi=80, metadata={"Software": None})


def main() -> None:
    """Draws all of them."""
    image, mask = real_mask()
    draw_bands(mask)
    draw_parseval(mask)
    draw_gradients(image, mask)


if __name__ == "__main__":
    main()
