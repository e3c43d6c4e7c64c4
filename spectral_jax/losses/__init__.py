"""Losses as pure functions of arrays; they need jax, numpy and optax only.

`harmonized_loss(logits, labels)` is the one to start from.
"""

from spectral_jax.losses.activation import activate
from spectral_jax.losses.harmonized import (
    LOSSES,
    SPATIAL,
    SPECTRAL,
    harmonized_loss,
    harmonized_terms,
)
from spectral_jax.losses.spatial import (
    cross_entropy_loss,
    dice_loss,
    matthews_loss,
    pearson_loss,
    tversky_loss,
)
from spectral_jax.losses.spectral import (
    PRESETS,
    focal_frequency_loss,
    power_band,
    rings,
    soft_band,
    spectral_correlation,
    spectral_correlation_loss,
)

__all__ = [
    "LOSSES",
    "PRESETS",
    "SPATIAL",
    "SPECTRAL",
    "activate",
    "cross_entropy_loss",
    "dice_loss",
    "focal_frequency_loss",
    "harmonized_loss",
    "harmonized_terms",
    "matthews_loss",
    "pearson_loss",
    "power_band",
    "rings",
    "soft_band",
    "spectral_correlation",
    "spectral_correlation_loss",
    "tversky_loss",
]
