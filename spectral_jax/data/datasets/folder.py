r"""Anyone's pictures: `<root>/<split>/images/*` and `<root>/<split>/masks/*` of the same names.

* splits: `train`, `validation` (or `val`, `valid`; optional) and `test`. Where there are none, but
  `<root>/images` and `<root>/masks`, a fifth of the cases is for testing, and a tenth of the rest
  for validation;
* images: PNG, JPEG, TIFF, BMP or GIF, grey (8 or 16 bit) or RGB, read as viewers show them; a mask
  has its image's name up to the ending, and `_mask`, `_seg`, `_segmentation`, `_label` or `_gt` may
  follow;
* masks of two classes: black and what is brighter than `threshold`, in one colour, as JPEG masks
  need, or 0 and 1;
* masks of more classes, or with `threshold=-1`: class numbers 0 ... classes - 1 in 8 bit;
* `classes.txt` in the root: class names, one a line, background first; or `classes=(...)`. Where
  masks hold colours, each line ends in the colour of its class: `liver #00ff00`.

`case_pattern` is a regular expression that groups slices into volumes, with the groups `case` and
`slice` in an image's name: `(?P<case>.+)_slice_(?P<slice>\d+)`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from spectral_jax.data.datasets.dataset import Case, Dataset, Found
from spectral_jax.data.datasets.files import Pair, first_folder, picture_case, plain, read_text
from spectral_jax.data.pictures import ENDINGS, find_kind, read_binary_mask, read_mask
from spectral_jax.data.volumes import DataError

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
MASK_SUFFIXES = ("", "_mask", "_seg", "_segmentation", "_label", "_gt")
CLASS = re.compile(r"(?P<name>.*?)(?:\s+(?P<color>#[0-9a-fA-F]{6}))?")
CLASSES_FILE = "classes.txt"


def _pairs(folder: Path) -> dict[str, Pair]:
    """Image and mask of each picture in `images` and `masks`, by the image's name."""
    images, masks = (
        sorted(
            path
            for path in (folder / kind).glob("[!.]*")  # systems leave hidden files
            if path.name.lower().endswith(ENDINGS) and path.is_file()
        )
        for kind in ("images", "masks")
    )
    if not images:
        raise DataError(f"{folder / 'images'}: no images ({', '.join(ENDINGS)})")
    by_name: dict[str, Path] = {}
    for mask in masks:
        name = plain(mask.stem)
        if name in by_name:
            raise DataError(f"{mask}: two masks of one name, also {by_name[name]}; keep one")
        by_name[name] = mask
    pairs: dict[str, Pair] = {}
    for image in images:
        name = plain(image.stem)
        if name in pairs:
            raise DataError(f"{image}: two images of one name, also {pairs[name][0]}; keep one")
        found = [by_name.pop(n) for s in MASK_SUFFIXES if (n := name + s) in by_name]
        if len(found) != 1:
            problem = "no mask" if not found else "several masks"
            raise DataError(
                f"{image}: {problem} of that name in {folder / 'masks'}; expected {image.stem}.png "
                f"or another ending, or one of {', '.join(MASK_SUFFIXES[1:])} before it"
            )
        pairs[name] = (image, found[0])
    if by_name:
        raise DataError(f"{next(iter(by_name.values()))}: a mask without an image")
    return pairs


def read_classes(root: Path, classes: Sequence[str]) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Names of classes, and their colours in masks where they are given.

    Args:
      root: the folder of `classes.txt`.
      classes: its lines, if they are given in another way.

    Raises:
      DataError: for one class alone, a name or colour given twice, or colours of some classes only.
    """
    where, lines = "config.data.options.classes", [plain(text) for text in classes]
    if not lines:
        files = [path for path in root.glob("*") if path.name.lower() == CLASSES_FILE]
        if not files:
            return (), {}
        where, lines = str(files[0]), read_text(files[0]).splitlines()
    found = [CLASS.fullmatch(line.strip()) for line in lines if line.strip()]
    names = tuple(line["name"] for line in found if line)
    colors = [line["color"].lower() for line in found if line and line["color"]]
    if len(names) < 2:
        raise DataError(
            f"{where}: {', '.join(names) or 'nothing'}; expected background and a class"
        )
    for values in (names, colors):
        if twice := [value for value in values if list(values).count(value) > 1]:
            raise DataError(f"{where}: {twice[0]!r} is there twice; each class has one of its own")
    if colors and len(colors) < len(names):
        raise DataError(
            f"{where}: {len(colors)} of {len(names)} classes have a colour; give one to each, such "
            "as 'background #000000', or to none"
        )
    return names, dict(zip(names, colors, strict=True)) if colors else {}


def read(
    root: Path,
    classes: Sequence[str] = (),
    case_pattern: str = "",
    threshold: int = 127,
) -> Found:
    """Finds the pictures of each split; see the module for the layout and the options."""
    names, colors = read_classes(root, classes)
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

    two_class = threshold >= 0 and len(names) == 2 and not colors
    mask_reader = (
        partial(read_binary_mask, threshold=threshold)
        if two_class
        else partial(read_mask, colors=colors)
    )

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
    splits: dict[str, list[Case]] = {}
    if not any(folders.values()) and (root / "images").is_dir():
        splits["all"] = cases(root)
    else:
        splits["validation"] = []  # none is taken from the training part
        for split, folder in folders.items():
            if folder is not None:
                splits[split] = cases(folder)
            elif split != "validation":
                raise DataError(
                    f"{root / split}: no such folder; expected {split}/images and {split}/masks, "
                    "or all pictures in images and masks, to be split here"
                )
    kind = find_kind(
        path
        for of_split in splits.values()
        for case in of_split
        for path in case.files[: len(case.files) // 2]
    )
    notes = []
    if kind.bits < 16:
        notes.append(
            f"16-bit pictures use {kind.bits} bits, up to {kind.highest}: they are stored in full "
            f"range, 0 ... {2**kind.bits - 1} as 0 ... 65535, and new pictures must be alike"
        )
    details = {"classes": names, "channels": kind.channels, "bits": kind.bits}
    return Found(splits, notes=notes, details=details)


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
