"""What a data set is: its description, its cases, and its partners out of distribution."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from spectral_jax.data.labels import Labels
from spectral_jax.data.volumes import DataError, Spacing

BACKGROUND_COLOR = "#000000"
# told apart by colour-blind readers too: Okabe and Ito, then Tol's muted colours
COLORS = (
    *("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"),
    *("#882255", "#44AA99", "#999933", "#332288", "#DDCC77", "#117733", "#AA4499"),
)


class Loaded(NamedTuple):
    """A case in memory.

    Attributes:
      image: `[depth, height, width, channels]`, uint8 or uint16.
      label: `[depth, height, width]`, uint8 class numbers, and the set's `ignore_label`; of a set
        whose classes overlap, as `spectral_jax.data.labels` has them.
      spacing_mm: `(depth, height, width)` of a voxel, or None where unknown.
      instances: `[height, width]`, uint16: a number for each object of a picture, where known.
      notes: what was read otherwise than it is stored, for a person to know; the same words for
        the same thing, so that cases can be counted.
    """

    image: np.ndarray
    label: np.ndarray
    spacing_mm: Spacing | None = None
    instances: np.ndarray | None = None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """A patient's volume, or a picture.

    Attributes:
      name: unique within the data set.
      files: what it is made of: images, then their labels in the same order, or files that hold
        both. Errors name them and their checksums are kept.
      load: reads them.
      group: the patient or video; all cases of a group go into one split.
    """

    name: str
    files: tuple[Path, ...]
    load: Callable[[], Loaded]
    group: str = ""

    def __post_init__(self):
        object.__setattr__(self, "group", self.group or self.name)


class Found(NamedTuple):
    """What a reader finds in a folder.

    Attributes:
      splits: cases of "train", "validation" and "test", or "all" where no split is published. Some
        may be missing. In the place of "validation" comes a part of "train"; an empty list says
        that none is wanted.
      official: how many cases the complete set has in this layout; None if that is not known.
      notes: what a user should know of this folder.
      tile: training pictures are cut into squares of this size; 0 for whole ones.
      details: fields of the `Dataset` that only the files tell.
      folds: for training cases by name, the number of the published fold that holds them out.
    """

    splits: Mapping[str, Sequence[Case]]
    official: int | None = None
    notes: Sequence[str] = ()
    tile: int = 0
    details: Mapping[str, Any] = {}
    folds: Mapping[str, int] = {}


@dataclasses.dataclass(frozen=True)
class Partner:
    """A set to test on, out of distribution.

    Attributes:
      name: of the data set.
      classes: for each of its classes that is scored, the class of the set trained on that means
        the same.
      shift: what differs.
      options: of its reader.
    """

    name: str
    classes: Mapping[str, str]
    shift: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is known of a data set.

    Attributes:
      name: as in `--config.data.name`.
      description: one sentence.
      modality: such as "T1 MRI".
      channels: how many there are; None if the files tell.
      channel_names: where each channel is a volume or a file of its own, such as "FLAIR"; () for
        pictures and for a single one.
      bits: how many bits the values of its 16-bit pictures use; they are stored in full range.
      classes: names, background first; None if the files tell.
      palette: their colours, as "#rrggbb", where the files tell them; () for ours.
      licence: as far as known.
      source: where to get the files, and which of them go where.
      read: `read(root, **options)` finds the cases of each split.
      beside: the files outside of the root that `read` looks at, too.
      intensity: how intensities are scaled, a key of `spectral_jax.data.volumes.INTENSITIES`, or
        one for each of `channel_names`.
      orientation: what its NIfTI files are turned to: see `spectral_jax.data.geometry`; "" where
        the files have none.
      ignore_label: value of labels whose pixels do not count; None if all do.
      overlapping: whether its readers give labels of classes that overlap.
      regions: overlapping classes to make of the class numbers: names, and the numbers of each.
      axes: those of its NIfTI files, once turned, that become depth, height and width.
      volume: which one is taken of NIfTI files that hold several; None if each holds one.
      test: what the test split is.
      partners: sets to test on, out of distribution.
      needs_root: whether raw files must be given.
    """

    name: str
    description: str
    modality: str
    channels: int | None
    classes: tuple[str, ...] | None
    licence: str
    source: str
    read: Callable[..., Found]
    palette: tuple[str, ...] = ()
    beside: Callable[[Path], Sequence[Path]] = lambda root: ()
    channel_names: tuple[str, ...] = ()
    intensity: str | tuple[str, ...] = "identity"
    orientation: str = ""
    ignore_label: int | None = None
    overlapping: bool = False
    regions: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    axes: tuple[int, int, int] = (2, 1, 0)
    volume: int | None = None
    bits: int = 16
    test: str = "as in the folder"
    partners: tuple[Partner, ...] = ()
    needs_root: bool = True

    @property
    def stored(self) -> "Dataset":
        """The set as its records hold it: regions are classes that overlap."""
        if not self.regions:
            return self
        classes = ("background", *self.regions)
        return dataclasses.replace(self, classes=classes, overlapping=True, regions={}, palette=())

    @property
    def labels(self) -> Labels:
        """How its stored labels are to be read."""
        return Labels(len(self.classes or ()) - 1, self.overlapping, self.ignore_label is not None)

    @property
    def colors(self) -> tuple[str, ...]:
        """A colour for each class."""
        palette = self.palette or itertools.chain([BACKGROUND_COLOR], itertools.cycle(COLORS))
        return tuple(itertools.islice(palette, len(self.classes or ())))

    def partner(self, name: str, classes: Sequence[str] = ()) -> Partner:
        """The partner of that name; for any other set, classes of the same name are the same.

        `classes` are those trained on, where the files told them.
        """
        same = {label: label for label in (classes or self.classes or ())[1:]}
        unknown = Partner(name, same, "not known")
        return next((partner for partner in self.partners if partner.name == name), unknown)


def label_map(
    partner: Partner, theirs: Sequence[str], ours: Sequence[str]
) -> tuple[UInt8[np.ndarray, "256"], tuple[str, ...]]:
    """How to score a network on a partner.

    Args:
      partner: what its classes mean.
      theirs: class names of the partner, background first.
      ours: class names of the set that the network was trained on.

    Returns:
      A table from class numbers of the partner to ours, in which classes that we do not have
      are background; and those of our classes that can be scored. Our other classes count as
      background, in a prediction too.

    Raises:
      DataError: if no class can be scored.

    >>> heart = ("background", "right ventricle", "myocardium", "left ventricle")
    >>> partner = Partner("folder", {"cavity": "left ventricle"}, "scanner")
    >>> table, scored = label_map(partner, ("background", "cavity"), heart)
    >>> table[:2].tolist(), scored
    ([0, 3], ('left ventricle',))
    """
    table = np.zeros(256, np.uint8)
    for number, name in enumerate(theirs[1:], start=1):
        if partner.classes.get(name) in ours:
            table[number] = ours.index(partner.classes[name])
    scored = tuple(name for number, name in enumerate(ours) if number and (table == number).any())
    if not scored:
        raise DataError(
            f"data set {partner.name!r} has the classes {', '.join(theirs[1:])}, none of which is "
            f"one of {', '.join(ours[1:])}; name its classes alike, or register it as a partner"
        )
    return table, scored
