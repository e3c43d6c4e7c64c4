"""Surface distances against closed forms, published numbers and a brute-force reference."""

import math
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from spectral_jax.metrics import score_case, surface
from spectral_jax.metrics.surface import (
    assd,
    hd95,
    hd95_transunet,
    nsd,
    surface_distances,
    surface_voxels,
)


def disk(shape, centre, radius):
    """A filled circle or ball."""
    grid = np.indices(shape).T - np.array(centre)
    return (np.linalg.norm(grid, axis=-1) <= radius).T


def reference_surface(mask):
    """Voxels of the mask with a neighbour across a face that is outside it, one by one."""
    padded = np.pad(mask, 1)
    steps = [s * axis for axis in np.eye(mask.ndim, dtype=int) for s in (-1, 1)]
    return [
        voxel
        for voxel in np.argwhere(mask)
        if not all(padded[tuple(voxel + 1 + step)] for step in steps)
    ]


masks = hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=8).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 2)
)


@pytest.mark.parametrize("dense", [0.0, math.inf], ids=["distance transform", "tree"])
@settings(max_examples=60, deadline=None)
@given(pair=masks, spacing=st.lists(st.floats(0.3, 5.0), min_size=3, max_size=3))
def test_brute_force(dense, pair, spacing):
    prediction, truth = pair
    assume(prediction.any() and truth.any())
    spacing = spacing[: truth.ndim]
    surfaces = [np.array(reference_surface(mask)) * spacing for mask in pair]
    all_pairs = cdist(*surfaces)
    with mock.patch.object(surface, "DENSE", dense):
        distances = surface_distances(prediction, truth, spacing)
    np.testing.assert_allclose(distances.from_prediction, all_pairs.min(axis=1), atol=1e-12)
    np.testing.assert_allclose(distances.from_truth, all_pairs.min(axis=0), atol=1e-12)


@settings(deadline=None)
@given(masks)
def test_swapping_the_masks_swaps_the_directions(pair):
    there, back = surface_distances(*pair), surface_distances(*pair[::-1])
    for metric in (hd95, assd, hd95_transunet):
        np.testing.assert_allclose(metric(there), metric(back), rtol=1e-12)


def test_square_with_a_spur_separates_the_three_definitions():
    # A 20 x 20 square whose prediction has a spur of 20 pixels, one pixel wide.
    truth = np.zeros((60, 60), bool)
    truth[10:30, 10:30] = True
    prediction = truth.copy()
    prediction[20, 30:50] = True
    distances = surface_distances(prediction, truth)
    assert round(hd95_transunet(distances), 1) == 11.5
    assert round(hd95(distances), 1) == 15.3
    assert max(map(np.max, distances)) == 20
    assert round(hd95_transunet(surface_distances(prediction, truth, (1, 2))), 1) == 23.0


def test_shifted_square():
    # A 10 x 10 square has 36 surface pixels. Moved down by 2, 16 of them are still on the old
    # surface; the pixels next to the old sides (2 at the top, 2 at the bottom) are 1 away.
    truth = np.zeros((20, 20), bool)
    truth[5:15, 5:15] = True
    distances = surface_distances(np.roll(truth, 2, axis=0), truth)
    values, counts = np.unique(distances.from_prediction, return_counts=True)
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {0: 16, 1: 4, 2: 16}
    assert assd(distances) == 1
    assert hd95(distances) == 2


@pytest.mark.parametrize("spacing", [None, (2.0, 2.0, 2.0)])
def test_concentric_balls(spacing):
    shape, centre = (50, 50, 50), (25, 25, 25)
    distances = surface_distances(disk(shape, centre, 20), disk(shape, centre, 12), spacing)
    unit = 1 if spacing is None else spacing[0]
    # The surface of a digital ball lies within a voxel below its radius.
    assert assd(distances) == pytest.approx(8 * unit, abs=0.5 * unit)
    assert hd95(distances) == pytest.approx(8 * unit, abs=unit)


def test_anisotropic_spacing():
    truth = np.zeros((8, 30, 30), bool)
    truth[2:4, 10:20, 10:20] = True
    shifted = {axis: np.roll(truth, 2, axis) for axis in range(3)}
    spacing = (10.0, 1.5, 0.5)
    # Every voxel of a slab two thick is surface; moved by two, the nearer layer is 10 mm away.
    along_depth = surface_distances(shifted[0], truth, spacing)
    assert sorted(np.unique(along_depth.from_prediction)) == [10.0, 20.0]
    assert surface_distances(shifted[1], truth, spacing).from_prediction.max() == 3.0
    assert surface_distances(shifted[2], truth, spacing).from_prediction.max() == 1.0


def test_objects_at_the_border():
    full = np.ones((5, 6), bool)
    assert len(surface_voxels(full)) == 2 * (5 + 6) - 4
    corner = np.zeros((5, 6), bool)
    corner[0, 0] = True
    distances = surface_distances(corner, full)
    assert distances.from_prediction.tolist() == [0.0]
    assert distances.from_truth.max() == pytest.approx(math.hypot(4, 5))


def test_empty_masks():
    empty, some = np.zeros((6, 6), bool), np.eye(6, dtype=bool)
    for pair in [(empty, some), (some, empty), (empty, empty)]:
        distances = surface_distances(*pair)
        assert math.isnan(hd95(distances))
        assert math.isnan(assd(distances))
        assert hd95_transunet(distances) == 0
    # no distance, but of two surfaces one is missed altogether
    assert nsd(surface_distances(empty, some), 100) == nsd(surface_distances(some, empty), 100) == 0
    assert math.isnan(nsd(surface_distances(empty, empty), 1))


@settings(max_examples=30, deadline=None)
@given(
    pair=masks,
    spacing=st.lists(st.floats(0.3, 5.0), min_size=3, max_size=3),
    tolerance=st.floats(0, 5),
)
def test_surface_dice_is_the_share_of_both_surfaces_within_the_tolerance(pair, spacing, tolerance):
    assume(pair[0].any() and pair[1].any())
    spacing = spacing[: pair[0].ndim]
    surfaces = [np.array(reference_surface(mask)) * spacing for mask in pair]
    all_pairs = cdist(*surfaces)
    nearest = np.concatenate([all_pairs.min(axis=0), all_pairs.min(axis=1)])
    assume(np.abs(nearest - tolerance).min() > 1e-9)  # the tie is a matter of rounding
    expected = (nearest < tolerance).mean()
    assert nsd(surface_distances(*pair, spacing), tolerance) == pytest.approx(expected, abs=1e-12)


def test_surface_dice_of_a_shifted_square():
    # see `test_shifted_square`: 16 of 36 surface pixels stay, 4 are 1 away and 16 are 2 away
    truth = np.zeros((20, 20), bool)
    truth[5:15, 5:15] = True
    distances = surface_distances(np.roll(truth, 2, axis=0), truth)
    assert [nsd(distances, tolerance) for tolerance in (0, 1, 1.9, 2)] == [
        16 / 36,
        20 / 36,
        20 / 36,
        1,
    ]
    with pytest.raises(ValueError, match="tolerance=-1"):
        nsd(distances, -1)


def test_identical_masks():
    ball = disk((12, 12, 12), (6, 6, 6), 4)
    distances = surface_distances(ball, ball, (1, 2, 3))
    assert hd95(distances) == assd(distances) == hd95_transunet(distances) == 0


def test_case_reports_mm_beside_voxels():
    truth = np.zeros((10, 10), int)
    truth[3:6, 3:6] = 1
    (row,) = score_case(np.roll(truth, 1, axis=1), truth, 2, spacing=(1.0, 4.0))
    assert row["hd95"] == 4.0
    assert row["hd95_transunet"] == 1.0
    (plain,) = score_case(np.roll(truth, 1, axis=1), truth, 2)
    assert plain["hd95"] == plain["hd95_transunet"] == 1.0


@pytest.mark.parametrize("spacing", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, math.nan)])
def test_unfit_spacing_is_refused(spacing):
    mask = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match="expected 2 positive numbers"):
        surface_distances(mask, mask, spacing)


def test_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\).*\(4, 5\)"):
        surface_distances(np.ones((4, 4), bool), np.ones((4, 5), bool))
