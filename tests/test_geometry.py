"""One scan, however its file stores it, is prepared and predicted alike in the patient."""

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import orientations

from spectral_jax.data import geometry
from spectral_jax.data.datasets import files
from spectral_jax.data.geometry import AS_ACQUIRED, Grid, bring_label, common_orientation, turn_to
from spectral_jax.data.volumes import DataError, mri_percentile
from spectral_jax.inference.formats import read_scan

STORED = ["".join(letters) for letters in itertools.product("RL", "AP", "SI")]
STORED = ["".join(order) for letters in STORED for order in itertools.permutations(letters)]


def rotation(angles) -> np.ndarray:
    """Turns about the three axes, one after the other."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        c, s = np.cos(angle), np.sin(angle)
        around = np.insert(np.insert([[c, -s], [s, c]], axis, 0, 0), axis, 0, 1)
        around[axis, axis] = 1
        matrix = around @ matrix
    return matrix


def affine_of(sides, angles=(0, 0, 0), origin=(-30.0, 20.0, 7.0)) -> np.ndarray:
    return nibabel.affines.from_matvec(rotation(angles) @ np.diag(sides), origin)


def stored_as(image: nibabel.Nifti1Image, letters: str) -> nibabel.Nifti1Image:
    """nibabel's own way of storing an image with other axes."""
    want = orientations.axcodes2ornt(letters)
    return image.as_reoriented(
        orientations.ornt_transform(orientations.io_orientation(image.affine), want)
    )


def grid_of(file) -> Grid:
    return Grid(file.shape[:3], file.affine)


# far from 45 degrees, where the nearest direction of an axis is a matter of rounding
@given(
    letters=st.tuples(*[st.sampled_from(STORED)] * 3),
    angles=st.tuples(*[st.floats(-20, 20)] * 3),
    sides=st.sampled_from([(1.0, 1, 1), (0.8, 0.8, 5), (3.0, 0.7, 0.7), (1.0, 4, 1.1)]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_prepared_and_predicted_agree_in_the_patient(
    letters, angles, sides, seed, tmp_path_factory
):
    """MIC-DKFZ/nnUNet#2526, wasserth/TotalSegmentator#509: no axes of a file change a result."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(seed)
    voxels = rng.normal(size=(5, 6, 7)).astype(np.float32)
    truth = rng.integers(0, 3, voxels.shape).astype(np.uint8)
    affine = affine_of(sides, angles)
    image, label = (nibabel.Nifti1Image(array, affine) for array in (voxels, truth))
    orientation = common_orientation([grid_of(image)])
    prepared = []
    for number, (of_image, of_label) in enumerate([("RAS", "RAS"), letters[:2]]):
        paths = [folder / f"{kind}{number}.nii.gz" for kind in ("image", "label")]
        nibabel.save(stored_as(image, of_image), paths[0])
        nibabel.save(stored_as(label, of_label), paths[1])
        case = files.nifti_case("a", *paths, intensity="mri_percentile", orientation=orientation)
        prepared.append(case.load())
    one, other = prepared
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_array_equal(one.label, other.label)
    assert one.spacing_mm == pytest.approx(other.spacing_mm, rel=1e-5)
    # slices lie along the thickest side, or upwards
    thick = 2 if len(set(sides)) == 1 else int(np.argmax(sides))
    assert one.label.shape[0] == voxels.shape[thick]
    assert one.spacing_mm[0] == pytest.approx(sides[thick], rel=1e-5)

    # a mask found in the prepared image, written beside a file with yet other axes
    path = folder / "scan.nii.gz"
    nibabel.save(stored_as(image, letters[2]), path)
    scan = read_scan([path], orientation=orientation)
    np.testing.assert_array_equal(mri_percentile(scan.image), one.image)
    (written,) = scan.write_labels(one.label, folder / "out", ("a", "b"), ("", ""))
    result = nibabel.load(written)
    np.testing.assert_array_equal(result.affine, nibabel.load(path).affine)
    back = stored_as(result, "RAS")
    np.testing.assert_array_equal(np.asarray(back.dataobj), truth)
    np.testing.assert_allclose(back.affine, affine, atol=1e-4)


@pytest.mark.parametrize("orientation", ["RAS", "RPS", "ASR", "LIP", "", AS_ACQUIRED])
@pytest.mark.parametrize("axes", [(2, 1, 0), (2, 0, 1)])
def test_a_turn_is_undone(orientation, axes, rng):
    volume = rng.random((3, 4, 5, 2))
    grid = Grid(volume.shape[:3], affine_of((-2.0, 3, 4), (50, 10, -20)))
    turn = turn_to(grid, orientation, axes)
    np.testing.assert_array_equal(turn.undo(turn.apply(volume)), volume)
    if not orientation:
        np.testing.assert_array_equal(turn.apply(volume), volume.transpose(*axes, 3))


@pytest.mark.parametrize(
    ("scans", "expected"),
    [
        ([((64, 64, 64), (1.0, 1, 1), "RAS"), ((64, 64, 64), (1.0, 1, 1), "LPI")], "RAS"),
        ([((64, 64, 64), (1.0, 1, 1), "PSR")], "ASR"),  # as the file has its slices
        ([((20, 256, 256), (5.0, 1, 1), "RAS")], "ASR"),  # sagittal, stored along the first axis
        ([((256, 20, 256), (1.0, 4, 1), "RAS"), ((9, 9, 9), (1.0, 1, 1), "RAS")], "RSA"),
        ([((1, 36, 52), (999.0, 1, 1), "RAS")], "ASR"),
        ([((36, 1, 38), (1.0, 1, 1), "RAS")], "RSA"),
        ([((64, 64, 9), (1.0, 1, 8), "RAS"), ((64, 64, 9), (1.0, 1, 8), "PSR")], AS_ACQUIRED),
    ],
)
def test_a_set_is_sliced_as_it_was_acquired(scans, expected):
    grids = []
    for shape, sides, letters in scans:
        columns = ["RAS".index(geometry._positive(letter)) for letter in letters]
        affine = np.eye(4)
        affine[:3, :3] = np.diag((1.0, 1, 1))[:, columns] * sides
        grids.append(Grid(shape, affine))
    assert common_orientation(grids) == expected


def test_a_label_on_another_grid_is_refused(rng):
    """MIC-DKFZ/nnUNet#1157: same shape, other place."""
    label = rng.integers(0, 2, (4, 5, 6))
    image_grid = Grid(label.shape, affine_of((1.0, 1, 2)))
    shifted = Grid(label.shape, affine_of((1.0, 1, 2), origin=(-30, 21, 7)))
    with pytest.raises(ValueError, match=r"lies elsewhere .*: up to 1 mm apart; the first voxel"):
        bring_label(label, shifted, image_grid)
    turned = Grid(label.shape, affine_of((1.0, 1, 2), angles=(0, 0, 10)))
    with pytest.raises(ValueError, match="lies elsewhere"):
        bring_label(label, turned, image_grid)
    with pytest.raises(ValueError, match=r"the mask is 4x5x5 \(RAS\), its image 4x5x6"):
        bring_label(label[..., 1:], Grid((4, 5, 5), image_grid.affine), image_grid)


@pytest.mark.parametrize(
    ("affine", "known"),
    [
        (np.eye(4), True),
        (np.diag([-1.0, -1, 1, 1]), True),  # of SimpleITK, for arrays
        (np.diag([-1.0, 1, 1, 1]), False),
        (np.diag([0.7, 0.7, 2, 1]), True),  # spacing alone
    ],
)
def test_a_label_without_a_place_fits_as_stored_and_that_is_said(affine, known, rng):
    """A guard: labels saved with an identity affine must go on working."""
    label = rng.integers(0, 2, (4, 5, 6))
    image_grid = Grid(label.shape, affine_of((0.7, 0.7, 2), angles=(5, 0, 30)))
    found, note = bring_label(label, Grid(label.shape, affine, known), image_grid)
    np.testing.assert_array_equal(found, label)
    assert "the label's affine says no place" in note


def test_affines_that_differ_by_rounding_are_the_same(rng):
    """A guard: MIC-DKFZ/nnUNet#1287."""
    label = rng.integers(0, 2, (4, 5, 6))
    affine = affine_of((0.7, 0.7, 2), angles=(5, 0, 30))
    rounded = np.round(affine, 3)
    assert (rounded != affine).any()
    found, note = bring_label(label, Grid(label.shape, rounded), Grid(label.shape, affine))
    np.testing.assert_array_equal(found, label)
    assert note == ""


@pytest.mark.parametrize("broken", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_an_affine_that_places_nothing_is_named(broken, tmp_path):
    file = nibabel.Nifti1Image(np.zeros((3, 3, 3), np.int16), np.eye(4))
    file.header["srow_x"], file.header["srow_y"], file.header["srow_z"] = broken[:3]
    file.header["sform_code"] = 1
    file.to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[280:328] = broken[:3].astype("<f4").tobytes()  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: .*does not say where voxels lie"):
        read_scan([tmp_path / "a.nii"])
