"""Where voxels lie: volumes in one orientation, and labels on the grid of their image.

Directions are letters, as nibabel has them: "RAS" says that an array's first axis runs to the right
of the patient, its second forwards and its third upwards. Prepared volumes of a data set have one
orientation, whatever the axes of their files; a prediction is turned back to the axes of its file.
Volumes are permuted and mirrored, never resampled: a voxel keeps its value.
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import nibabel
import numpy as np
from jaxtyping import Float, Shaped
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes

AS_ACQUIRED = "as acquired"
"""The orientation of sets whose scans are sliced along different directions, as of hearts."""

ALONG = {"S": "RAS", "A": "RSA", "R": "ASR"}  # orientation by the direction of the last axis
CLEARLY_THICKER = 1.5  # voxels are this much longer along the slices' normal than within slices
TOLERANCE = 0.25  # of a voxel's shortest side: what rounding in headers may move a corner


class Grid(NamedTuple):
    """The voxels of a file in the patient.

    Attributes:
      shape: of the file's three axes.
      affine: `[4, 4]`, from voxel indices to millimetres to the right, forwards and upwards.
      known: whether the file says so; of a header with neither code set, nibabel makes one up.
    """

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    known: bool = True

    @property
    def letters(self) -> str:
        """The nearest directions of the three axes.

        >>> Grid((4, 5, 6), np.diag([-2.0, 2, 2, 1])).letters
        'LAS'
        """
        return "".join(nibabel.aff2axcodes(self.affine))

    @property
    def sides_mm(self) -> Float[np.ndarray, "3"]:
        """The sides of a voxel along the three axes."""
        return voxel_sizes(self.affine)

    def check(self) -> None:
        """Raises ValueError for an affine that puts no volume anywhere."""
        linear = self.affine[:3, :3]
        cuboid = np.prod(self.sides_mm)
        if not np.isfinite(self.affine).all() or not abs(np.linalg.det(linear)) > 1e-3 * cuboid:
            raise ValueError(
                f"its affine {np.round(linear, 4).tolist()} does not say where voxels lie; "
                "expected three finite directions that are not in one plane"
            )


@dataclasses.dataclass(frozen=True)
class Turn:
    """Which axes of an array become those of another, and which of the other's are mirrored.

    >>> volume = np.arange(24).reshape(2, 3, 4)
    >>> turn = Turn((2, 1, 0), (False, True, False))
    >>> turn.apply(volume).shape, bool((turn.undo(turn.apply(volume)) == volume).all())
    ((4, 3, 2), True)
    """

    axes: tuple[int, int, int]
    mirrored: tuple[bool, bool, bool] = (False, False, False)

    @property
    def _mirror(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if mirrored else 1) for mirrored in self.mirrored)

    def apply(self, volume: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Turns the first three axes; others, of channels, stay."""
        return volume.transpose(*self.axes, *range(3, volume.ndim))[self._mirror]

    def undo(self, volume: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Turns back what `apply` turned."""
        back = (int(axis) for axis in np.argsort(self.axes))
        return volume[self._mirror].transpose(*back, *range(3, volume.ndim))


def turn_to(grid: Grid, orientation: str, axes: tuple[int, ...] = (2, 1, 0)) -> Turn:
    """How a file's axes become depth, height and width.

    Args:
      grid: of the file.
      orientation: what its axes are turned to first: three letters, `AS_ACQUIRED`, or "" for the
        axes as they are stored.
      axes: which of the turned axes become depth, height and width.
    """
    depth, height, width = axes
    if not orientation:
        return Turn((depth, height, width))
    if orientation == AS_ACQUIRED:
        orientation = ALONG[_positive(grid.letters[_slice_axis(grid, otherwise="S")])]
    turn = turn_between(grid.letters, orientation)
    return Turn(
        (turn.axes[depth], turn.axes[height], turn.axes[width]),
        (turn.mirrored[depth], turn.mirrored[height], turn.mirrored[width]),
    )


def turn_between(have: str, want: str) -> Turn:
    """How an array with axes of some directions gets others.

    >>> turn_between("LPS", "RAS")
    Turn(axes=(0, 1, 2), mirrored=(True, True, False))
    """
    codes = [orientations.axcodes2ornt(letters) for letters in (have, want)]
    turn = orientations.ornt_transform(*codes)  # for each axis that we have, where it goes
    source = np.argsort(turn[:, 0])
    first, second, third = (int(axis) for axis in source)
    mirrored = turn[source, 1] < 0
    return Turn((first, second, third), (bool(mirrored[0]), bool(mirrored[1]), bool(mirrored[2])))


def turned_sides(sides_mm: Sequence[float], turn: Turn) -> tuple[float, float, float]:
    """The sides of a voxel along the axes of a turned array."""
    first, second, third = (float(sides_mm[axis]) for axis in turn.axes)
    return first, second, third


def common_orientation(grids: Iterable[Grid]) -> str:
    """The orientation of a set: to the right, forwards and upwards, with the slices' normal last.

    The normal is the axis along which voxels are thickest, or the one that is a single voxel long;
    where neither stands out in any scan, the one that most files have last. If it is another
    direction in some scans than in others, they are sliced as they were acquired.

    >>> axial, isotropic = np.diag([1.0, 1, 5, 1]), np.eye(4)
    >>> common_orientation([Grid((64, 64, 9), axial), Grid((64, 64, 64), isotropic)])
    'RAS'
    """
    clear: set[str] = set()
    last: collections.Counter[str] = collections.Counter()
    for grid in grids:
        letters = [_positive(letter) for letter in grid.letters]
        last[letters[2]] += 1
        axis = _slice_axis(grid)
        if axis is not None:
            clear.add(letters[axis])
    if len(clear) > 1:
        return AS_ACQUIRED
    normal = clear.pop() if clear else max("SAR", key=lambda letter: last[letter])
    return ALONG[normal]


def _positive(letter: str) -> str:
    return {"L": "R", "P": "A", "I": "S"}.get(letter, letter)


def _slice_axis(grid: Grid, otherwise: str = "") -> Any:
    """The axis that a scan's slices follow each other along; without a clear one, None.

    With `otherwise`, the axis of that direction in the place of None.
    """
    single = [axis for axis in range(3) if grid.shape[axis] == 1]
    if len(single) == 1:
        return single[0]
    sides = grid.sides_mm
    thickest = int(np.argmax(sides))
    if sides[thickest] > CLEARLY_THICKER * np.delete(sides, thickest).max():
        return thickest
    if otherwise:
        return [_positive(letter) for letter in grid.letters].index(otherwise)
    return None


def bring_to(
    volume: Shaped[np.ndarray, "x y z"], grid: Grid, other: Grid
) -> Shaped[np.ndarray, "x y z"] | None:
    """Puts a volume onto another grid by permutations and mirroring alone; None if they differ."""
    turn = turn_between(grid.letters, other.letters)
    turned = turned_grid(grid, turn)
    if turned.shape != other.shape:
        return None
    near = _distance(turned, other) <= TOLERANCE * other.sides_mm.min()
    return turn.apply(volume) if near else None


def bring_label(
    label: Shaped[np.ndarray, "x y z"], label_grid: Grid, image_grid: Grid
) -> tuple[Shaped[np.ndarray, "x y z"], str]:
    """Puts a label onto the grid of its image, by permutations and mirroring alone.

    A label with the image's shape and without a place of its own, as tools write that forget it, is
    taken to lie on the image's grid.

    Returns:
      The label, voxel for voxel that of the image, and what a user should know, or "".

    Raises:
      ValueError: if it lies elsewhere, or is of another size; the text starts with what was found.
    """
    brought = bring_to(label, label_grid, image_grid)
    if brought is not None:
        note = "" if label_grid.letters == image_grid.letters else "turned to the image's axes"
        return brought, note and f"the label's axes were {note}"
    if label_grid.shape != image_grid.shape:
        raise ValueError(
            f"the mask is {_size(label_grid.shape)} ({label_grid.letters}), its image "
            f"{_size(image_grid.shape)} ({image_grid.letters})"
        )
    for which, grid, other in (
        ("label", label_grid, image_grid),
        ("image", image_grid, label_grid),
    ):
        if _has_no_place(grid, other):
            return label, f"the {which}'s affine says no place; voxels were taken to fit as stored"
    turned = turned_grid(label_grid, turn_between(label_grid.letters, image_grid.letters))
    distance = _distance(turned, image_grid) if turned.shape == image_grid.shape else np.inf
    how_far = f"up to {distance:.3g} mm apart" if np.isfinite(distance) else "in other axes"
    raise ValueError(
        f"the label lies elsewhere than its image: {how_far}; the first voxel is at "
        f"{_place(label_grid)} ({label_grid.letters}) and at {_place(image_grid)} "
        f"({image_grid.letters})"
    )


def turned_grid(grid: Grid, turn: Turn) -> Grid:
    """The grid of an array that was turned."""
    first, second, third = (grid.shape[axis] for axis in turn.axes)
    affine = grid.affine.copy()
    for new, (old, mirrored) in enumerate(zip(turn.axes, turn.mirrored, strict=True)):
        step = grid.affine[:3, old]
        affine[:3, new] = -step if mirrored else step
        if mirrored:
            affine[:3, 3] += step * (grid.shape[old] - 1)
    return Grid((first, second, third), affine, grid.known)


def _distance(one: Grid, other: Grid) -> float:
    """How far apart, in mm, the corners of two grids of one shape are at most."""
    ends = [(0, size - 1) for size in one.shape]
    corners = np.array(list(itertools.product(*ends)))
    places = [apply_affine(grid.affine, corners) for grid in (one, other)]
    return float(np.linalg.norm(places[0] - places[1], axis=1).max())


def _has_no_place(grid: Grid, other: Grid) -> bool:
    """Whether an affine is what tools write that do not know the place: no turn, from (0, 0, 0)."""
    linear, origin = grid.affine[:3, :3], grid.affine[:3, 3]
    straight = not origin.any() and np.array_equal(linear, np.diag(np.diag(linear)))
    sides_fit = any(np.allclose(grid.sides_mm, sides, rtol=1e-3) for sides in (1, other.sides_mm))
    return not grid.known or (straight and sides_fit)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _place(grid: Grid) -> str:
    return "({:.4g}, {:.4g}, {:.4g})".format(*grid.affine[:3, 3])
