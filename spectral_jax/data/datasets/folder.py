r"""Anyone's pictures: `<root>/<split>/images/*` and `<root>/<split>/masks/*` of the same names.

* splits: `train`, `validation` (or `val`, `valid`; optional) and `test`. Where there are none, but
  `<root>/images` and `<root>/masks`, a fifth of the cases is for testing, and a tenth of the rest
  for validation;
* images: PNG, JPEG, TIFF, BMP or GIF, grey (8 or 16 bit) or RGB; a mask has its image's name up to
  the ending, and `_mask`, `_seg`, `_segmentation`, `_label` or `_gt` may follow;
* masks of two classes: black and what is brighter than `threshold`, in any colour, as JPEG masks
  need, or 0 and 1;
* masks of more classes, or with `threshold=-1`: class numbers 0 ... classes - 1 in 8 bit;
* `classes.txt` in the root: class names, one a line, background first; or `classes=(...)`.

`case_pattern` is a regular expression that groups slices into volumes, with the groups `case` and
`slice` in an image's name: `(?P<case>.+)_slice_(?P<slice>\d+)`.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from spectral_jax.data.datasets.dataset import Case, Dataset, Found
from spectral_jax.data.datasets.files import Pair, first_folder, picture_case
from spectral_jax.data.volumes import DataError, read_image, read_mask

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif"}
MASK_SUFFIXES = ("", "_mask", "_seg", "_segmentation", "_label", "_gt")


def _pairs(folder: Path) -> dict[str, Pair]:
    """Image and mask of each picture in `images` and `masks`, by the image's name."""
    images, masks = (
        sorted(
            path
            for path in (folder / kind).glob("[!.]*")  # systems leave hidden files
            if path.suffix.lower() in ENDINGS
        )
        for kind in ("images", "masks")
    )
    if not images:
        raise DataError(f"{folder / 'images'}: no images ({', '.join(sorted(ENDINGS))})")
    by_name: dict[str, Path] = {}
    for mask in masks:
        if mask.stem in by_name:
            raise DataError(f"{mask}: two masks of one name, also {by_name[mask.stem]}")
        by_name[mask.stem] = mask
    pairs: dict[str, Pair] = {}
    for image in images:
        found = [by_name.pop(n) for s in MASK_SUFFIXES if (n := image.stem + s) in by_name]
        if len(found) != 1:
            problem = "no mask" if not found else "several masks"
            raise DataError(
                f"{image}: {problem} of that name in {folder / 'masks'}; expected {image.stem}.png "
                f"or another ending, or one of {', '.join(MASK_SUFFIXES[1:])} before it"
            )
        if image.stem in pairs:
            raise DataError(f"{image}: two images of one name, also {pairs[image.stem][0]}")
        pairs[image.stem] = (image, found[0])
    if by_name:
        raise DataError(f"{next(iter(by_name.values()))}: a mask without an image")
    return pairs


def read_two_class_mask(path: Path, threshold: int) -> UInt8[np.ndarray, "height width"]:
    """Returns 1 where a mask is brighter than `threshold` in any colour; 0 and 1 are themselves.

    Raises:
      DataError: for a mask that is not black, and yet nowhere brighter than `threshold`.
    """
    values = read_image(path).max(-1)
    highest = int(values.max())
    if 1 < highest <= threshold:
        raise DataError(
            f"{path}: the brightest value is {highest}, and nothing is above {threshold}. If masks "
            "hold class numbers, the class names are not known: write them to classes.txt, one a "
            "line and background first. If they are dark, lower --config.data.options.threshold"
        )
    return (values > (0 if highest == 1 else threshold)).astype(np.uint8)


def read(
    root: Path,
    classes: Sequence[str] = (),
    case_pattern: str = "",
    threshold: int = 127,
) -> Found:
    """Finds the pictures of each split; see the module for the layout and the options."""
    names = tuple(classes)
    if not names and (root / "classes.txt").is_file():
        names = tuple((root / "classes.txt").read_text().split("\n"))
        names = tuple(name.strip() for name in names if name.strip())
    if not names:
        if threshold < 0:
            raise DataError(
                f"{root}: class names are not known; write them, one a line and background first, "
                "to classes.txt there or set config.data.options.classes. For black-and-white "
                "masks set --config.data.options.threshold=127"
            )
        names = ("background", "foreground")
    try:
        pattern = re.compile(case_pattern) if case_pattern else None
    except re.error as error:
        raise DataError(
            f"case_pattern {case_pattern!r} is no regular expression: {error}"
        ) from None
    if pattern and not {"case", "slice"} <= set(pattern.groupindex):
        raise DataError(
            f"case_pattern {case_pattern!r} must name two groups: (?P<case>...) and (?P<slice>...)"
        )

    two_class = threshold >= 0 and len(names) == 2
    mask_reader = partial(read_two_class_mask, threshold=threshold) if two_class else read_mask

    def cases(folder: Path) -> list[Case]:
        groups: dict[str, list[tuple[int, Pair]]] = {}
        for name, pair in _pairs(folder).items():
            if not pattern:
                groups[name] = [(0, pair)]
            elif match := pattern.fullmatch(name):
                groups.setdefault(match["case"], []).append((int(match["slice"]), pair))
            else:
                raise DataError(f"{pair[0]}: the name does not fit case_pattern {case_pattern!r}")
        return [
            picture_case(case, *(pair for _, pair in sorted(slices)), read_mask=mask_reader)
            for case, slices in groups.items()
        ]

    folders = {split: first_folder(root, *choices) for split, choices in SPLIT_FOLDERS.items()}
    if not any(folders.values()) and (root / "images").is_dir():
        return Found({"all": cases(root)}, details={"classes": names})
    splits: dict[str, list[Case]] = {"validation": []}  # none is taken from the training part
    for split, folder in folders.items():
        if folder is not None:
            splits[split] = cases(folder)
        elif split != "validation":
            raise DataError(
                f"{root / split}: no such folder; expected {split}/images and {split}/masks, or "
                "all pictures in images and masks, to be split here"
            )
    return Found(splits, details={"classes": names})


DATASET = Dataset(
    name="folder",
    description="Pictures and masks in folders.",
    modality="any",
    channels=None,
    classes=None,
    licence="yours",
    source="Your own: FOLDER/{train,validation,test}/{images,masks} with files of the same names, "
    "or FOLDER/{images,masks}.",
    read=read,
)
