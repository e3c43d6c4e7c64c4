"""Noisy discs, or balls, that stand in for your own images in the examples beside this file."""

import numpy as np

from spectral_jax.metrics.overlap import dice, overlap_counts


def discs(count: int, size: int = 32, dimensions: int = 2, seed: int = 0):
    """Returns images `[count, *spatial, 1]`, float32, and labels `[count, *spatial]`, 0 or 1."""
    rng = np.random.default_rng(seed)
    spatial = (size,) * dimensions
    centres = rng.uniform(0.3 * size, 0.7 * size, (count, *[1] * dimensions, dimensions))
    radii = rng.uniform(0.15 * size, 0.3 * size, (count, *[1] * dimensions))
    distance = np.linalg.norm(np.moveaxis(np.indices(spatial), 0, -1) - centres, axis=-1)
    labels = (distance < radii).astype(np.int32)
    images = labels + rng.normal(0, 0.5, labels.shape)
    return images[..., None].astype(np.float32), labels


def dice_of(logits, labels) -> float:
    """Dice of the discs, all images taken together."""
    return dice(overlap_counts(logits.argmax(-1), labels, num_classes=2))[1]
