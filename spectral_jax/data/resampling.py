"""Volumes at another spacing, and what is found in them back on their own grid.

A grid of another spacing covers the same box: its outer borders are those of the volume, not the
middles of its outer voxels. Images are interpolated linearly, after smoothing along axes that
shrink; labels take the nearest voxel; probabilities are interpolated linearly, so that the most
probable class is decided on the grid that they come back to.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Num, UInt
from scipy import ndimage


def shape_at(
    shape: Sequence[int], spacing_mm: Sequence[float] | None, target_mm: Sequence[float]
) -> tuple[int, ...]:
    """The shape of a volume at another spacing.

    Args:
      shape: of the volume, in voxels.
      spacing_mm: of a voxel along each axis; None where it is not known, which changes nothing.
      target_mm: of the last axes; those before keep their spacing, all of them for ().

    >>> shape_at((10, 20, 30), (3.0, 0.5, 0.5), (1.0, 1.0))
    (10, 10, 15)
    """
    if spacing_mm is None:
        return tuple(shape)
    kept = len(shape) - len(target_mm)
    sides = zip(shape[kept:], spacing_mm[kept:], target_mm, strict=True)
    return (*shape[:kept], *(max(1, round(n * have / want)) for n, have, want in sides))


def resample_image(
    image: Num[np.ndarray, "*spatial channels"], shape: Sequence[int]
) -> Num[np.ndarray, "*other channels"]:
    """Linear interpolation to another shape; keeps the type, and the very array for its own."""
    if image.shape[:-1] == tuple(shape):
        return image
    channels = []
    for channel in np.moveaxis(image.astype(np.float32), -1, 0):
        # as scikit-image does: half a voxel of the new grid, where that is coarser
        sigmas = [max(0.0, (n / m - 1) / 2) for n, m in zip(channel.shape, shape, strict=True)]
        channels.append(_zoom(ndimage.gaussian_filter(channel, sigmas), shape, order=1))
    resampled = np.stack(channels, axis=-1)
    if np.issubdtype(image.dtype, np.integer):
        resampled = np.rint(resampled)
    return resampled.astype(image.dtype)


def resample_label(
    label: UInt[np.ndarray, "*spatial"], shape: Sequence[int]
) -> UInt[np.ndarray, "*other"]:
    """The values of the nearest voxels."""
    return label if label.shape == tuple(shape) else _zoom(label, shape, order=0)


def _zoom(volume: np.ndarray, shape: Sequence[int], order: int) -> np.ndarray:
    factors = [m / n for n, m in zip(volume.shape, shape, strict=True)]
    return ndimage.zoom(volume, factors, order=order, mode="nearest", grid_mode=True)


def resample_slices(
    slices: Iterable[Float[np.ndarray, "height width classes"]],
    depth: int,
    shape: tuple[int, int, int],
) -> Iterator[Float[np.ndarray, "rows columns classes"]]:
    """Linear interpolation of probabilities to another shape, a slice at a time.

    Args:
      slices: of a volume, in order; two of them are held.
      depth: how many there are.
      shape: depth, height and width of what is wanted.
    """
    in_plane = (_resample_plane(of_slice, shape[1:]) for of_slice in slices)
    places = np.clip((np.arange(shape[0]) + 0.5) * depth / shape[0] - 0.5, 0, depth - 1)
    lower = upper = next(in_plane)
    index = 0  # of `lower`; `upper` is the next one
    if depth > 1:
        upper = next(in_plane)
    for place in places:
        while place >= index + 1 and index + 2 < depth:
            lower, upper, index = upper, next(in_plane), index + 1
        share = np.float32(place - index)
        yield lower if share == 0 else (1 - share) * lower + share * upper


def _resample_plane(
    of_slice: Float[np.ndarray, "height width classes"], size: tuple[int, ...]
) -> Float[np.ndarray, "rows columns classes"]:
    if of_slice.shape[:2] == size:
        return of_slice
    return np.stack([_zoom(of, size, order=1) for of in np.moveaxis(of_slice, -1, 0)], axis=-1)
