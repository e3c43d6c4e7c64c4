"""What a stored label says of a pixel: one class, several, or that it does not count.

A label is one unsigned integer a pixel. Of classes that exclude each other it is the number of the
class, 0 for the background. Where classes overlap, bit `c - 1` is set where class `c` is. The
highest value of the type marks a pixel that does not count, in data sets that have such.

All of it takes numpy and jax arrays alike, unless it says otherwise.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt, UInt8

IGNORED = 255  # in 8 bits
MOST_OVERLAPPING = 15  # classes; the bits of 16, less the value for pixels that do not count


@dataclasses.dataclass(frozen=True)
class Labels:
    """How the labels of a data set, or of a prediction, are to be read.

    Attributes:
      classes: how many, without the background.
      overlapping: whether a pixel can be of several classes.
      ignore: whether there are pixels that do not count.
    """

    classes: int
    overlapping: bool = False
    ignore: bool = False

    @property
    def dtype(self) -> np.dtype:
        """Of stored labels: 16 bits for more than 7 overlapping classes, otherwise 8."""
        return np.dtype(np.uint16 if self.overlapping and self.classes > 7 else np.uint8)

    def valid(self, labels: UInt[Any, "*spatial"]) -> Bool[Any, "*spatial"]:
        """Which pixels count."""
        return labels != np.iinfo(labels.dtype).max

    def mask(self, labels: UInt[Any, "*spatial"], number: int) -> Bool[Any, "*spatial"]:
        """The mask of a class, from 1 on; false where pixels do not count."""
        if not self.overlapping:
            return labels == number
        return (((labels >> (number - 1)) & 1) == 1) & self.valid(labels)

    def masks(self, labels: UInt[Any, "*spatial"]) -> Bool[Any, "*spatial classes"]:
        """The masks of all classes but the background."""
        numbers = np.arange(self.classes, dtype=labels.dtype)
        if not self.overlapping:
            return labels[..., None] == numbers + 1
        return (((labels[..., None] >> numbers) & 1) == 1) & self.valid(labels)[..., None]

    def without(
        self,
        labels: UInt[np.ndarray, "*spatial"],
        number: int,
        where: Bool[np.ndarray, "*spatial"],
    ) -> UInt[np.ndarray, "*spatial"]:
        """The labels with a class taken away from some of its pixels (numpy).

        >>> Labels(2, overlapping=True).without(np.array([3, 3], np.uint8), 2, np.array([1, 0]) > 0)
        array([1, 3], dtype=uint8)
        """
        rest = labels & ~labels.dtype.type(1 << (number - 1)) if self.overlapping else 0
        return np.where(where, rest, labels).astype(labels.dtype)

    def pack(self, masks: Bool[np.ndarray, "*spatial classes"]) -> UInt[np.ndarray, "*spatial"]:
        """The label of overlapping masks (numpy).

        >>> Labels(2, overlapping=True).pack(np.array([[False, False], [True, True]]))
        array([0, 3], dtype=uint8)
        """
        assert self.overlapping
        bits = np.left_shift(1, np.arange(self.classes))
        return (masks * bits).sum(-1).astype(self.dtype)

    def count(self, labels: UInt[np.ndarray, "*spatial"]) -> Int[np.ndarray, " classes"]:
        """Pixels of each class, those of none first (numpy)."""
        values = np.bincount(labels.ravel(), minlength=np.iinfo(self.dtype).max + 1)
        codes = np.arange(len(values), dtype=self.dtype)
        masks = self.masks(codes)
        background = ~masks.any(-1) & (self.valid(codes) if self.ignore else True)
        return values @ np.column_stack([background, masks])

    def topmost(self, labels: UInt[np.ndarray, "*spatial"]) -> UInt8[np.ndarray, "*spatial"]:
        """One class a pixel, to be drawn: of those that overlap the smallest, on top of the others.

        255 where a pixel does not count.

        >>> Labels(2, overlapping=True).topmost(np.array([0, 1, 3, 3, 2, 2, 255], np.uint8))
        array([  0,   1,   1,   1,   2,   2, 255], dtype=uint8)
        """
        if not self.overlapping:
            return labels.astype(np.uint8)
        top = np.zeros(labels.shape, np.uint8)
        masks = {number: self.mask(labels, number) for number in range(1, self.classes + 1)}
        for number, mask in sorted(masks.items(), key=lambda item: -item[1].sum()):
            top[mask] = number
        top[~self.valid(labels)] = IGNORED
        return top

    def translate(self, numbers: Mapping[int, int], to: "Labels") -> UInt[np.ndarray, " values"]:
        """A table from these labels to others (numpy).

        Args:
          numbers: for a class here its number there; other classes are background there.
          to: how the others are to be read. Overlapping classes cannot become classes that exclude
            each other.
        """
        values = np.arange(np.iinfo(self.dtype).max + 1, dtype=self.dtype)
        table = np.zeros(len(values), to.dtype)
        for here, there in numbers.items():
            code = 1 << (there - 1) if to.overlapping else there
            table[self.mask(values, here)] |= to.dtype.type(code)
        if self.ignore:
            table[-1] = np.iinfo(to.dtype).max
        return table


def regions_table(
    regions: Mapping[str, Sequence[int]], ignore_label: int | None
) -> UInt[np.ndarray, "256"]:
    """From class numbers in 8 bits to overlapping classes, each made of some numbers.

    >>> regions_table({"whole": [1, 2], "front": [1]}, ignore_label=255)[[0, 1, 2, 255]]
    array([  0,   3,   1, 255], dtype=uint8)
    """
    labels = Labels(len(regions), overlapping=True)
    masks = np.zeros((256, len(regions)), bool)
    for index, numbers in enumerate(regions.values()):
        masks[list(numbers), index] = True
    table = labels.pack(masks)
    if ignore_label is not None:
        table[ignore_label] = np.iinfo(labels.dtype).max
    return table


def fullest_slice(*labels: UInt[np.ndarray, "depth height width"]) -> int:
    """The slice where most pixels are foreground in any of some labels; the first of several.

    >>> fullest_slice(np.array([[[0, 1]], [[2, 1]], [[1, 1]]], np.uint8))
    1
    """
    foreground = np.any([of > 0 for of in labels], axis=0)
    return int(foreground.sum((1, 2)).argmax())
