"""Harmonized spatial and spectral learning for medical image segmentation, in JAX."""

__version__ = "0.1.0"
