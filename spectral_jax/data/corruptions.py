"""Corruptions of images at five severities, to measure what a network still sees through them.

`corrupt` changes one case; the result depends on the case's name, the corruption and the severity
alone, so every network sees the same corrupted images.

Each function of `CORRUPTIONS` takes an image in [0, 1], `[depth, height, width, channels]`
float32, what its row of `SEVERITIES` says, and a random generator. Slices are corrupted in plane.
Sizes in pixels are stated for images of 224 x 224 and scale with the square root of the area, so
that a slice of 40 x 50 is not wiped out.

Sources of the figures: ImageNet-C (arXiv 1903.12261) where nothing else is said; MedMNIST-C (arXiv
2406.17536, file `registry.py` of its package) for "CT" (its abdominal sets), for "X-ray" (chest)
and for "dermoscopy". Ours are: that MRI takes the figures for CT where both have a corruption, the
severities of the four corruptions of MRI, and those marked below.
"""

import io
import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import fft, signal

REFERENCE_SIZE = 224  # pixels, at which sizes are stated
GHOST_SPACING = 4  # every fourth line of k-space is weakened
GHOST_RESTORED = 0.02  # share of the lines, around the middle, that are left alone

Slices = Float[np.ndarray, "depth height width channels"]


def gaussian(image: Slices, sigma: float, generator: np.random.Generator) -> Slices:
    """Gaussian noise, x + sigma n."""
    return image + np.float32(sigma) * _normal(image, generator)


def speckle(image: Slices, sigma: float, generator: np.random.Generator) -> Slices:
    """Speckle noise, x + sigma x n."""
    return image + np.float32(sigma) * image * _normal(image, generator)


def impulse(image: Slices, share: float, generator: np.random.Generator) -> Slices:
    """Salt and pepper: a share of the values becomes 0 or 1, evenly."""
    draw = generator.random(image.shape, np.float32)
    return np.where(draw < share, np.where(draw < share / 2, np.float32(0), np.float32(1)), image)


def shot(image: Slices, photons: float, generator: np.random.Generator) -> Slices:
    """Shot noise, Poisson(c x) / c with c photons at full brightness."""
    return (generator.poisson(image * photons) / photons).astype(np.float32)


def gaussian_blur(image: Slices, sigma: float, generator: np.random.Generator) -> Slices:
    """Gaussian blur; sigma in pixels at 224; borders mirror the image.

    Frequencies f are multiplied by exp(-2 pi^2 sigma^2 f^2), since a sampled Gaussian does nothing
    where sigma is a fraction of a pixel, as it is in small slices.
    """
    height, width = image.shape[1:3]
    y, x = np.arange(height) / (2 * height), np.arange(width) / (2 * width)
    damping = np.exp(-2 * (np.pi * sigma * _pixel(image)) ** 2 * np.add.outer(y**2, x**2))
    waves = fft.dctn(image, axes=(1, 2)) * damping.astype(np.float32)[None, :, :, None]
    return fft.idctn(waves, axes=(1, 2))


def motion_blur(
    image: Slices, radius_sigma: tuple[float, float], generator: np.random.Generator
) -> Slices:
    """Blur along a line that is at most 45 degrees from the horizontal; see `motion_kernel`.

    The kernel of ImageNet-C lies to one side and so moves a picture against its mask; this one has
    the same radii and deviations, in pixels at 224, and is centred.
    """
    radius, sigma = (size * _pixel(image) for size in radius_sigma)
    kernel = motion_kernel(radius, sigma, generator.uniform(-math.pi / 4, math.pi / 4))
    margin = len(kernel) // 2
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")
    kernel = kernel[None, :, :, None]
    return signal.fftconvolve(padded, kernel, mode="valid", axes=(1, 2)).astype(np.float32)


def motion_kernel(radius: float, sigma: float, angle: float) -> Float[np.ndarray, "size size"]:
    """A line through the middle with weights exp(-t^2 / 2 sigma^2), |t| <= radius, that sum to 1.

    Args:
      radius: half of its length in pixels.
      sigma: deviation of the weights in pixels.
      angle: against the second axis, in radians.
    """
    margin = math.ceil(radius)
    kernel = np.zeros((2 * margin + 1,) * 2)
    t = np.linspace(-radius, radius, 8 * margin + 1)
    weights = np.exp(-0.5 * (t / sigma) ** 2)
    row, column = margin + t * math.sin(angle), margin + t * math.cos(angle)
    low_row, low_column = np.floor(row).astype(int), np.floor(column).astype(int)
    for down in (0, 1):  # each point is shared out among its four pixels
        for right in (0, 1):
            part = np.abs(1 - down - (row - low_row)) * np.abs(1 - right - (column - low_column))
            rows = np.minimum(low_row + down, 2 * margin)
            columns = np.minimum(low_column + right, 2 * margin)
            np.add.at(kernel, (rows, columns), weights * part)
    return (kernel / kernel.sum()).astype(np.float32)


def contrast(image: Slices, factor: float, generator: np.random.Generator) -> Slices:
    """Less contrast, (x - m) c + m with m the mean of each slice and channel."""
    mean = image.mean(axis=(1, 2), keepdims=True)
    return (image - mean) * np.float32(factor) + mean


def brightness(image: Slices, factor: float, generator: np.random.Generator) -> Slices:
    """Another brightness, f x."""
    return image * np.float32(factor)


def gamma(image: Slices, exponent: float, generator: np.random.Generator) -> Slices:
    """Another gamma, x^g."""
    return image ** np.float32(exponent)


def jpeg(image: Slices, quality: int, generator: np.random.Generator) -> Slices:
    """JPEG compression of 8-bit slices at Pillow's quality."""
    if image.shape[-1] not in (1, 3):  # each channel is a picture of its own
        channels = np.split(image, image.shape[-1], axis=-1)
        return np.concatenate([jpeg(channel, quality, generator) for channel in channels], axis=-1)
    squeezed = np.empty_like(image)
    for index, of_slice in enumerate(np.rint(image * 255).astype(np.uint8)):
        file = io.BytesIO()
        Image.fromarray(of_slice.squeeze(-1) if of_slice.shape[-1] == 1 else of_slice).save(
            file, "JPEG", quality=quality
        )
        squeezed[index] = np.asarray(Image.open(file)).reshape(of_slice.shape)
    return squeezed / np.float32(255)


def pixelate(image: Slices, scale: float, generator: np.random.Generator) -> Slices:
    """Shrinks by averaging, and enlarges by repeating pixels."""
    height, width = image.shape[1:3]
    small = (max(1, int(width * scale)), max(1, int(height * scale)))
    coarse = np.empty_like(image)
    for index in np.ndindex(image.shape[0], image.shape[-1]):
        plane = Image.fromarray(image[index[0], :, :, index[1]])
        plane = plane.resize(small, Image.Resampling.BOX)
        plane = plane.resize((width, height), Image.Resampling.NEAREST)
        coarse[index[0], :, :, index[1]] = np.asarray(plane)
    return coarse


def rician(image: Slices, sigma: float, generator: np.random.Generator) -> Slices:
    """Rician noise, sqrt((x + sigma n1)^2 + (sigma n2)^2): the magnitude of a noisy MRI signal."""
    real = image + np.float32(sigma) * _normal(image, generator)
    return np.hypot(real, np.float32(sigma) * _normal(image, generator))


def ghosting(image: Slices, intensity: float, generator: np.random.Generator) -> Slices:
    """Ghosts from motion between lines of k-space, as in TorchIO's RandomGhosting.

    Along the height, the amplitudes of every fourth line but those around zero are multiplied by
    1 - s, which lays copies of the edges a quarter of the image apart over it.
    """
    height = image.shape[1]
    lines = np.fft.rfft(image, axis=1)
    frequency = np.arange(lines.shape[1])
    weak = (frequency % GHOST_SPACING == 0) & (frequency > GHOST_RESTORED / 2 * height)
    lines[:, weak] *= 1 - intensity
    return np.fft.irfft(lines, height, axis=1).astype(np.float32)


def bias_field(image: Slices, strength: float, generator: np.random.Generator) -> Slices:
    """Uneven sensitivity of a coil, x exp(s p), the same for all slices.

    p is a cubic polynomial of the place, as in MONAI and TorchIO, with random coefficients, scaled
    to a mean of 0 and a largest modulus of 1.
    """
    y, x = (np.linspace(-1, 1, size) for size in image.shape[1:3])
    coefficients = generator.uniform(-1, 1, (4, 4))
    coefficients[np.add.outer(np.arange(4), np.arange(4)) > 3] = 0
    field = np.polynomial.polynomial.polygrid2d(y, x, coefficients)
    field -= field.mean()
    field = np.exp(strength * field / max(np.abs(field).max(), np.finfo(float).tiny))
    return image * field.astype(np.float32)[None, :, :, None]


def gibbs(image: Slices, cut: float, generator: np.random.Generator) -> Slices:
    """Ringing from k-space that ends early, as in MONAI's GibbsNoise.

    Frequencies beyond (1 - a) / 2 cycles per pixel, in any direction, are removed.
    """
    height, width = image.shape[1:3]
    spectrum = np.fft.rfft2(image, axes=(1, 2))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    spectrum[:, frequency > (1 - cut) / 2] = 0
    return np.fft.irfft2(spectrum, (height, width), axes=(1, 2)).astype(np.float32)


def _normal(image: Slices, generator: np.random.Generator) -> Slices:
    return generator.standard_normal(image.shape, np.float32)


def _pixel(image: Slices) -> float:
    """What a pixel at the reference size is here."""
    return math.sqrt(image.shape[1] * image.shape[2]) / REFERENCE_SIZE


CORRUPTIONS: dict[str, Callable[[Slices, Any, np.random.Generator], Slices]] = {
    function.__name__: function
    for function in (
        *(gaussian, speckle, impulse, shot, gaussian_blur, motion_blur, contrast, brightness),
        *(gamma, jpeg, pixelate, rician, ghosting, bias_field, gibbs),
    )
}

# by corruption and kind of image; kinds that are not named take "picture", MRI takes "CT" first
SEVERITIES: dict[str, dict[str, tuple]] = {
    "gaussian": {
        "picture": (0.08, 0.12, 0.18, 0.26, 0.38),
        "CT": (0.04, 0.08, 0.12, 0.16, 0.20),
        "X-ray": (0.04, 0.08, 0.12, 0.18, 0.26),
        "dermoscopy": (0.04, 0.08, 0.12, 0.18, 0.26),
    },
    "speckle": {
        "picture": (0.15, 0.2, 0.35, 0.45, 0.6),
        "CT": (0.05, 0.1, 0.2, 0.3, 0.4),
        "X-ray": (0.05, 0.15, 0.2, 0.35, 0.45),
        "dermoscopy": (0.05, 0.15, 0.2, 0.35, 0.45),
    },
    "impulse": {
        "picture": (0.03, 0.06, 0.09, 0.17, 0.27),
        "CT": (0.01, 0.02, 0.03, 0.05, 0.08),
        "X-ray": (0.01, 0.03, 0.06, 0.09, 0.17),
        "dermoscopy": (0.01, 0.03, 0.06, 0.09, 0.17),
    },
    "shot": {
        "picture": (60, 25, 12, 5, 3),
        "CT": (200, 100, 50, 25, 15),
        "X-ray": (60, 25, 18, 10, 5),
        "dermoscopy": (60, 25, 18, 10, 5),
    },
    "gaussian_blur": {"picture": (1, 2, 3, 4, 6)},
    "motion_blur": {
        "picture": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "dermoscopy": ((10, 5), (15, 5), (15, 8), (15, 12), (20, 15)),
    },
    "contrast": {
        "picture": (0.4, 0.3, 0.2, 0.1, 0.05),
        "CT": (0.8, 0.7, 0.6, 0.55, 0.5),
        "X-ray": (0.9, 0.8, 0.7, 0.6, 0.4),
        "dermoscopy": (0.8, 0.7, 0.6, 0.5, 0.4),
    },
    # ImageNet-C adds to the value in HSV; these are MedMNIST-C's factors, and using its chest
    # and skin rows for all pictures is our choice
    "brightness": {"picture": (1.1, 1.2, 1.3, 1.4, 1.5), "CT": (0.8, 0.75, 0.7, 0.65, 0.6)},
    # the row for pictures is that of MedMNIST-C's chest sets, our choice
    "gamma": {"picture": (1.1, 1.2, 1.3, 1.4, 1.6), "CT": (1.3, 1.4, 1.6, 1.8, 2.0)},
    # MedMNIST-C's most frequent rows
    "jpeg": {"picture": (50, 30, 15, 10, 7), "dermoscopy": (30, 20, 15, 10, 7)},
    "pixelate": {
        "picture": (0.7, 0.6, 0.5, 0.4, 0.35),
        "X-ray": (0.3, 0.25, 0.2, 0.15, 0.1),
        "dermoscopy": (0.7, 0.5, 0.4, 0.3, 0.25),
    },
    # ours; TorchIO draws s from 0.5 to 1 by default
    "rician": {"picture": (0.02, 0.05, 0.1, 0.15, 0.2)},
    "ghosting": {"picture": (0.2, 0.4, 0.6, 0.8, 1.0)},
    "bias_field": {"picture": (0.2, 0.4, 0.6, 0.8, 1.0)},
    "gibbs": {"picture": (0.3, 0.4, 0.5, 0.6, 0.7)},
}
LEVELS = (1, 2, 3, 4, 5)

_NOISE = ("gaussian", "speckle", "impulse", "shot")
_INTENSITY = ("contrast", "brightness", "gamma")
_OF_KIND = {
    "MRI": (
        *("gaussian", "speckle", "gaussian_blur", *_INTENSITY),
        *("rician", "ghosting", "bias_field", "gibbs"),
    ),
    "CT": (*_NOISE, "gaussian_blur", *_INTENSITY, "jpeg", "pixelate"),
    "picture": (*_NOISE, "gaussian_blur", "motion_blur", *_INTENSITY, "jpeg", "pixelate"),
}
_OF_KIND["X-ray"] = _OF_KIND["CT"]
_KINDS = {
    "CT": r"\bCT\b",
    "MRI": r"\b(MRI?|FLAIR|ADC|T[12]\w*)\b",
    "X-ray": r"\bX-ray\b",
    "dermoscopy": r"\bdermoscopy\b",
}


def _kind(modality: str) -> str:
    for kind, words in _KINDS.items():
        if re.search(words, modality, re.IGNORECASE):
            return kind
    return "picture"


def for_modality(modality: str) -> tuple[str, ...]:
    """Names of the corruptions that images of a modality may suffer.

    Args:
      modality: as a data set says of itself, such as "cardiac cine MRI"; one that is neither MRI,
        CT nor X-ray is taken for a picture.

    >>> for_modality("MRI (Hippocampus)")[-4:]
    ('rician', 'ghosting', 'bias_field', 'gibbs')
    """
    kind = _kind(modality)
    return _OF_KIND.get(kind, _OF_KIND["picture"])


def strength(name: str, severity: int, modality: str) -> Any:
    """What a severity means for a corruption of images of a modality.

    Raises:
      ValueError: for an unknown corruption or severity.

    >>> strength("gaussian", 1, "abdominal CT"), strength("gaussian", 1, "colonoscopy")
    (0.04, 0.08)
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"corruption {name!r}: choose one of {', '.join(CORRUPTIONS)}")
    if severity not in LEVELS:
        raise ValueError(f"severity={severity!r} of {name}: expected one of {LEVELS}")
    rows, kind = SEVERITIES[name], _kind(modality)
    row = rows.get("CT" if kind == "MRI" else kind, rows["picture"])
    return row[severity - 1]


def corrupt(image: np.ndarray, name: str, severity: int, *, modality: str, case: str) -> np.ndarray:
    """Corrupts one case, always in the same way for the same name, severity and case.

    Args:
      image: `[depth, height, width, channels]`, uint8 or uint16; a picture has depth 1.
      name: one of `CORRUPTIONS`.
      severity: 1 to 5.
      modality: of the data set; it chooses the row of `SEVERITIES`.
      case: the case's name, from which, with `name` and `severity`, the noise is drawn.

    Returns:
      An image of the same shape and type, cut off at black and white.

    Raises:
      ValueError: for an unknown corruption or severity, or an image of another type or shape.
    """
    value = strength(name, severity, modality)
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 4:
        raise ValueError(
            f"image {image.dtype} {image.shape}: expected uint8 or uint16, "
            "[depth, height, width, channels]"
        )
    white = np.float32(np.iinfo(image.dtype).max)
    # a checksum, since Python's hash of a string differs between processes
    generator = np.random.default_rng(zlib.crc32(f"{case}/{name}/{severity}".encode()))
    corrupted = CORRUPTIONS[name](image / white, value, generator)
    return np.rint(np.clip(corrupted, 0, 1) * white).astype(image.dtype)
