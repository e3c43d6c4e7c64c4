"""Distances between the surfaces of two masks: HD95, ASSD and surface Dice (NSD).

The surface of a mask is the mask minus its erosion by the neighbourhood of faces (connectivity
1), as in medpy; what lies outside the image counts as background, so an object that touches the
border has a surface there. All distances are exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import KDTree

# Surface voxels per voxel of the volume from which on a distance transform of the volume is faster
# than a tree; the compact objects of medical images have fewer, a noisy prediction has more.
DENSE = 0.1
LEAF = 64  # voxels; SciPy's 10 takes 1.3 to 2 times as long on surfaces


class SurfaceDistances(NamedTuple):
    """Distance of each voxel of one surface to the other; infinite if the other mask is empty."""

    from_prediction: Float[np.ndarray, " predicted_surface"]
    from_truth: Float[np.ndarray, " true_surface"]


def surface_voxels(mask: Bool[np.ndarray, "*spatial"]) -> Int[np.ndarray, "surface axes"]:
    """Indices of the voxels of `mask` that have a face in common with the background."""
    if not mask.any():
        return np.empty((0, mask.ndim), int)
    axes = range(mask.ndim)
    planes = [np.flatnonzero(mask.any(axis=tuple({*axes} - {axis}))) for axis in axes]
    inside = mask[tuple(slice(occupied[0], occupied[-1] + 1) for occupied in planes)]
    corner = [occupied[0] for occupied in planes]
    return np.argwhere(inside & ~ndimage.binary_erosion(inside)) + corner


def distances_between(
    predicted_surface: Int[np.ndarray, "predicted_surface axes"],
    true_surface: Int[np.ndarray, "true_surface axes"],
    spacing: Sequence[float] | None = None,
) -> SurfaceDistances:
    """Distances between two sets of `surface_voxels`; see `surface_distances`."""
    axes = predicted_surface.shape[1]
    size = np.ones(axes) if spacing is None else np.asarray(spacing, float)
    if size.shape != (axes,) or not (np.isfinite(size) & (size > 0)).all():
        raise ValueError(f"spacing={spacing}, expected {axes} positive numbers, one for each axis")
    if not len(predicted_surface) or not len(true_surface):
        return SurfaceDistances(
            np.full(len(predicted_surface), np.inf), np.full(len(true_surface), np.inf)
        )
    return SurfaceDistances(
        _distances(predicted_surface, true_surface, size),
        _distances(true_surface, predicted_surface, size),
    )


def _distances(start: np.ndarray, goal: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Distance of each voxel of `start` to the nearest of `goal`."""
    corner = np.minimum(start.min(axis=0), goal.min(axis=0))
    shape = np.maximum(start.max(axis=0), goal.max(axis=0)) - corner + 1
    if len(start) < DENSE * np.prod(shape):
        # Median splits are slow on a grid, where many voxels share a coordinate.
        tree = KDTree(goal * size, leafsize=LEAF, balanced_tree=False)
        return tree.query(start * size)[0]
    away = np.ones(shape, bool)
    away[tuple((goal - corner).T)] = False
    return ndimage.distance_transform_edt(away, sampling=size)[tuple((start - corner).T)]


def surface_distances(
    prediction: Bool[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    spacing: Sequence[float] | None = None,
) -> SurfaceDistances:
    """Distances in both directions between the surfaces of two masks.

    Args:
      prediction: boolean mask with two or three axes.
      truth: boolean mask of the same shape.
      spacing: size of a voxel along each axis, in mm; voxels (pixels) are the unit without it.

    Raises:
      ValueError: for masks of different shapes, or a spacing that does not fit them.

    >>> a, b = np.zeros((2, 9, 9), bool)
    >>> a[2:4, 2:4], b[2:4, 5:7] = True, True
    >>> surface_distances(a, b).from_prediction
    array([3., 2., 3., 2.])
    """
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction has shape {prediction.shape} but truth has {truth.shape}")
    return distances_between(surface_voxels(prediction), surface_voxels(truth), spacing)


def _either_empty(distances: SurfaceDistances) -> bool:
    return not (distances.from_prediction.size and distances.from_truth.size)


def hd95(distances: SurfaceDistances) -> float:
    """95 % Hausdorff distance: the larger of the two directed 95th percentiles, as in MONAI.

    NaN when either mask is empty.
    """
    if _either_empty(distances):
        return float("nan")
    return float(max(np.percentile(directed, 95) for directed in distances))


def assd(distances: SurfaceDistances) -> float:
    """Average symmetric surface distance: the mean of both directions pooled, as in medpy 0.5.

    Older codes average the means of the two directions, which weighs a small surface like a large
    one. NaN when either mask is empty.
    """
    if _either_empty(distances):
        return float("nan")
    return float(np.concatenate(distances).mean())


def nsd(distances: SurfaceDistances, tolerance: float) -> float:
    """Surface Dice at a tolerance (NSD, arXiv 1809.04430): the share of both surfaces within it.

    Voxels of the surface count alike, as in MONAI; DeepMind's code weighs them by their area. 0
    when one mask is empty, NaN when both are.

    Args:
      distances: of both surfaces.
      tolerance: in the unit of the distances, at least 0; a distance that equals it is within it.

    Raises:
      ValueError: for a negative tolerance.

    >>> nsd(SurfaceDistances(np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.5])), tolerance=1.0)
    0.6
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance}: expected a distance, 0 or more")
    both = np.concatenate(distances)
    return float((both <= tolerance).mean()) if both.size else float("nan")


def hd95_transunet(distances: SurfaceDistances) -> float:
    """HD95 as in TransUNet's tables: the 95th percentile of both directions pooled, as in medpy.

    Those tables are in voxels: give it distances without spacing. 0 when either mask is empty.
    For comparison with the literature only.
    """
    if _either_empty(distances):
        return 0.0
    return float(np.percentile(np.concatenate(distances), 95))
