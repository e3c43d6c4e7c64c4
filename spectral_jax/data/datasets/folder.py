r"""Anyone's pictures: `<root>/<split>/images/*` and `<root>/<split>/masks/*` of the same names.

* splits: `train`, `validation` (or `val`, `valid`; optional) and `test`;
* images: PNG, JPEG, TIFF, BMP or GIF, grey (8 or 16 bit) or RGB; a mask has its image's name up to
  the ending, `_mask` or `_segmentation` may follow;
* masks: class numbers 0 ... classes - 1 in 8 bit; for two classes black and white, where makes
  every brighter pixel foreground, as JPEG masks need;
* `classes.txt` in the root: class names, one a line, background first; or `classes=(...)`.

`case_pattern` is a regular expression that groups slices into volumes, with the groups `case` and
`slice` in an image's name: `(?P<case>.+)_slice_(?P<slice>\d+)`.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from spectral_jax.data.datasets.dataset import Case, Dataset, Found
from spectral_jax.data.datasets.files import Pair, picture_case
from spectral_jax.data.volumes import DataError, read_mask

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif"}
MASK_SUFFIXES = ("", "_mask", "_segmentation")


def _pairs(folder: Path) -> dict[str, Pair]:
    """Image and mask of each picture in `images` and `masks`, by the image's name."""
    images, masks = (
        sorted(path for path in (folder / kind).glob("*") if path.suffix.lower() in ENDINGS)
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
            raise DataError(f"{image}: {problem} of that name in {folder / 'masks'}")
        if image.stem in pairs:
            raise DataError(f"{image}: two images of one name, also {pairs[image.stem][0]}")
        pairs[image.stem] = (image, found[0])
    if by_name:
        raise DataError(f"{next(iter(by_name.values()))}: a mask without an image")
    return pairs


def read(
    root: Path,
    classes: Sequence[str] = (),
    case_pattern: str = "",
    threshold: int = -1,
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

    splits: dict[str, list[Case]] = {"validation": []}  # none is taken from the training part
    for split, folders in SPLIT_FOLDERS.items():
        folder = next((root / name for name in folders if (root / name).is_dir()), None)
        if folder is None:
            if split == "validation":
                continue
            raise DataError(f"{root / split}: no such folder; expected {split}/images and /masks")
        groups: dict[str, list[tuple[int, Pair]]] = {}
        for name, pair in _pairs(folder).items():
            if not pattern:
                groups[name] = [(0, pair)]
            elif match := pattern.fullmatch(name):
                groups.setdefault(match["case"], []).append((int(match["slice"]), pair))
            else:
                raise DataError(f"{pair[0]}: the name does not fit case_pattern {case_pattern!r}")
        splits[split] = [
            picture_case(
                case,
                *(pair for _, pair in sorted(slices)),
                read_mask=partial(read_mask, threshold=threshold),
            )
            for case, slices in groups.items()
        ]
    return Found(splits, details={"classes": names})


DATASET = Dataset(
    name="folder",
    description="Pictures and masks in folders.",
    modality="any",
    channels=None,
    classes=None,
    licence="yours",
    source="Your own: FOLDER/{train,validation,test}/{images,masks} with files of the same names.",
    read=read,
)
