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
* classes that overlap: a folder of two-class masks for each, `masks/<class>/*`; a picture has a
  mask in one of them at least, and where it has none it is empty;
* `classes.txt` in the root: class names, one a line, background first; or `classes=(...)`. Where
  masks hold colours, each line ends in the colour of its class: `liver #00ff00`.

`case_pattern` is a regular expression that groups slices into volumes, with the groups `case` and
`slice` in an image's name: `(?P<case>.+)_slice_(?P<slice>\d+)`.

A patient, video or centre has several cases where `group_pattern`, a regular expression, finds the
same text in their names, such as `patient\d+`; or where the column `group_column` of `cases.csv` in
the root, whose first column has the names of the cases, says the same. They stay in one split and
in one fold.
"""

import csv
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from PIL import ImageColor

from spectral_jax.data.datasets.dataset import Case, Dataset, Found
from spectral_jax.data.datasets.files import (
    PICTURE,
    Masked,
    Masks,
    ReadMask,
    and_others,
    check_size,
    first_folder,
    picture_case,
    plain,
    read_text,
    visible_files,
)
from spectral_jax.data.labels import MOST_OVERLAPPING, Labels
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
CASES_FILE = "cases.csv"
BACKGROUND_NAMES = ("back", "_back", "bg", "bkg", "none", "nothing", "other", "rest", "void", "0")
COLOURED_FROM = 64  # levels between the lowest and the highest of red, green and blue


def _pictures(folder: Path, what: str) -> dict[str, Path]:
    """The pictures of a folder by their names."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("[!.]*")):  # systems leave hidden files
        if path.name.lower().endswith(ENDINGS) and path.is_file():
            name = plain(path.stem)
            if name in found:
                raise DataError(f"{path}: two {what} of one name, also {found[name]}; keep one")
            found[name] = path
    return found


def class_folders(folder: Path) -> list[Path]:
    """The folders of masks of each class; none if all classes share their masks."""
    masks = folder / "masks"
    if _pictures(masks, "masks"):
        return []
    return [path for path in sorted(masks.glob("[!.]*")) if path.is_dir()]


def _masks_by_image(
    masks_folder: Path, images: Mapping[str, Path]
) -> tuple[dict[str, Path], list[Path]]:
    """The masks of a folder by the names of the images that they belong to, and those of none."""
    masks = _pictures(masks_folder, "masks")
    found: dict[str, Path] = {}
    for name, image in images.items():
        of_image = [masks.pop(n) for s in MASK_SUFFIXES if (n := name + s) in masks]
        if len(of_image) > 1:
            raise DataError(f"{image}: several masks of that name in {masks_folder}; keep one")
        if of_image:
            found[name] = of_image[0]
    return found, list(masks.values())


def _pairs(folder: Path) -> dict[str, tuple[Path, Masks]]:
    """Image and mask, or masks by class, of each picture in `images`, by the image's name."""
    images = _pictures(folder / "images", "images")
    if not images:
        raise DataError(f"{folder / 'images'}: no images ({', '.join(ENDINGS)})")
    of_classes = class_folders(folder)
    by_folder = [_masks_by_image(masks, images) for masks in of_classes or [folder / "masks"]]
    pairs: dict[str, tuple[Path, Masks]] = {}
    without_image = [mask for _, masks in by_folder for mask in masks]
    without_mask = []
    for name, image in images.items():
        masks = tuple(of_class[name] for of_class, _ in by_folder if name in of_class)
        if masks:
            pairs[name] = (image, masks if of_classes else masks[0])
        else:
            without_mask.append(image)
    if without_mask:
        first = without_mask[0].stem
        near = difflib.get_close_matches(
            first.casefold(), [mask.stem.casefold() for mask in without_image], n=1
        )
        hint = next(
            (f" (there is {m.name})" for m in without_image if m.stem.casefold() in near), ""
        )
        raise DataError(
            f"{without_mask[0]}: no mask of that name in {folder / 'masks'}{hint}; "
            f"expected {first}.png or another ending, or one of {', '.join(MASK_SUFFIXES[1:])} "
            f"before it{and_others(without_mask)}"
        )
    if without_image:
        raise DataError(f"{without_image[0]}: a mask without an image{and_others(without_image)}")
    return pairs


def _left_out(parts: Sequence[Path], used: set[Path]) -> list[str]:
    """A note on files beside the pictures that are not used: of other kinds, or deeper down."""
    there = [
        path
        for part in parts
        for kind in ("images", "masks")
        for path in visible_files(part / kind)
        if path not in used
    ]
    if not there:
        return []
    return [
        f"left out of images and masks: {len(there)} file{'s' * (len(there) > 1)}, such as "
        f"{there[0]}, of another kind than {', '.join(ENDINGS)}, or in a folder below"
    ]


def read_class_masks(
    paths: Sequence[Path], classes: Sequence[str], threshold: int, ignore_label: int | None
) -> UInt[np.ndarray, "height width"]:
    """Reads the masks of one picture, each of the class that its folder is called by."""
    labels = Labels(len(classes) - 1, overlapping=True)
    masks = [read_binary_mask(path, threshold, ignore_label) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        check_size(mask, path, masks[0], paths[0])
    layers = np.zeros((*masks[0].shape, labels.classes), bool)
    for path, mask in zip(paths, masks, strict=True):
        layers[..., classes.index(plain(path.parent.name)) - 1] = mask == 1
    label = labels.pack(layers)
    if ignore_label is not None:  # what one mask does not know, counts for none
        ignored = np.any([mask == ignore_label for mask in masks], axis=0)
        label[ignored] = np.iinfo(labels.dtype).max
    return label


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
            raise DataError(f"{where}: {twice[0]!r} appears twice; each class needs one of its own")
    if colors and len(colors) < len(names):
        raise DataError(
            f"{where}: {len(colors)} of {len(names)} classes have a colour; give one to each, such "
            "as 'background #000000', or to none"
        )
    return names, dict(zip(names, colors, strict=True)) if colors else {}


def _compile(pattern: str, name: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern) if pattern else None
    except re.error as error:
        raise DataError(f"{name} {pattern!r} is no regular expression: {error}") from None


def _group_finder(root: Path, group_pattern: str, group_column: str) -> Callable[[str], str]:
    """What tells the patient, video or centre of a case; "" for a case by itself."""
    if group_pattern and group_column:
        raise DataError("group_pattern and group_column are two ways to say one thing; choose one")
    pattern = _compile(group_pattern, "group_pattern")
    column = read_column(root / CASES_FILE, group_column) if group_column else {}

    def find_group(case: str) -> str:
        if group_column:
            if case not in column:
                raise DataError(f"{root / CASES_FILE}: no line for the case {case!r}")
            return column[case]
        match = pattern.search(case) if pattern else None
        if pattern and not (match and match[0]):
            raise DataError(f"{case!r}: group_pattern {group_pattern!r} finds nothing in this name")
        return match[0] if match else ""

    return find_group


def read_column(file: Path, name: str) -> dict[str, str]:
    """What a column of a table says of each case, whose name is in the first column.

    Raises:
      DataError: for a column that is not there, a case that appears twice, or an empty value.
    """
    header, *lines = [*csv.reader(read_text(file).splitlines())] or [[]]
    columns = [title.strip() for title in header]
    if name not in columns[1:]:
        raise DataError(f"{file}: no column {name!r} after the first; it has {', '.join(columns)}")
    place = columns.index(name)
    found: dict[str, str] = {}
    for line in lines:
        if not line:
            continue
        case = re.sub(rf"\.{PICTURE}$", "", line[0].strip(), flags=re.IGNORECASE)
        value = line[place].strip() if place < len(line) else ""
        if case in found or not value:
            what = "appears twice" if case in found else f"has no {name}"
            raise DataError(f"{file}: the case {case!r} {what}")
        found[case] = value
    return found


def read(
    root: Path,
    classes: Sequence[str] = (),
    case_pattern: str = "",
    threshold: int = 127,
    ignore_label: int | None = None,
    group_pattern: str = "",
    group_column: str = "",
) -> Found:
    """Finds the pictures of each split; see the module for the layout and the options."""
    names, colors = read_classes(root, classes)
    folders = {split: first_folder(root, *choices) for split, choices in SPLIT_FOLDERS.items()}
    parted = any(folders.values()) or not (root / "images").is_dir()
    parts = [folder for folder in folders.values() if folder] if parted else [root]
    of_classes = {plain(path.name): path for part in parts for path in class_folders(part)}
    if of_classes:
        names = names or ("background", *sorted(of_classes))
        if unknown := of_classes.keys() - set(names[1:]):
            raise DataError(
                f"{of_classes[min(unknown)]}: masks of no class; known are {', '.join(names[1:])}"
            )
        if len(names) - 1 > MOST_OVERLAPPING:
            raise DataError(
                f"{root}: {len(names) - 1} classes with masks of their own; expected at most "
                f"{MOST_OVERLAPPING}"
            )
    if not names:
        if threshold < 0:
            raise DataError(
                f"{root}: class names are not known; write them, one a line and background first, "
                "to classes.txt there or set config.data.options.classes. For black-and-white "
                "masks set --config.data.options.threshold=127"
            )
        names = ("background", "foreground")
    pattern = _compile(case_pattern, "case_pattern")
    find_group = _group_finder(root, group_pattern, group_column)
    if pattern and not {"case", "slice"} <= set(pattern.groupindex):
        raise DataError(
            f"case_pattern {case_pattern!r} must name two groups: (?P<case>...) and (?P<slice>...)"
        )

    two_class = threshold >= 0 and len(names) == 2 and not colors
    if (two_class or of_classes) and ignore_label in (0, 1):
        raise DataError(f"ignore_label={ignore_label}: in masks of two classes 0 and 1 are these")
    mask_reader: ReadMask
    if of_classes:
        mask_reader = partial(
            read_class_masks, classes=names, threshold=threshold, ignore_label=ignore_label
        )
    elif two_class:
        mask_reader = partial(read_binary_mask, threshold=threshold, ignore_label=ignore_label)
    else:
        mask_reader = partial(read_mask, colors=colors)

    images: list[Path] = []
    used: set[Path] = set()

    def cases(folder: Path) -> list[Case]:
        groups: dict[str, dict[int, Masked]] = {}
        for name, (image, masks) in _pairs(folder).items():
            images.append(image)
            used.update((image, *([masks] if isinstance(masks, Path) else masks)))
            case, number = name, 0
            if pattern:
                match = pattern.fullmatch(name)
                if not match or not match["slice"].isdecimal():
                    raise DataError(
                        f"{image}: the name does not fit case_pattern {case_pattern!r}, in which "
                        "`slice` is a whole number"
                    )
                case, number = match["case"], int(match["slice"])
            slices = groups.setdefault(case, {})
            if number in slices:
                raise DataError(f"{image}: slice {number} of {case!r} is {slices[number][0]} too")
            slices[number] = (image, masks)
        return [
            picture_case(
                case,
                *(slices[n] for n in sorted(slices)),
                group=find_group(case),
                read_mask=mask_reader,
            )
            for case, slices in groups.items()
        ]

    splits: dict[str, list[Case]] = {}
    if not parted:
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
    kind = find_kind(images)
    notes = _left_out(parts, used)
    if not names[0].casefold().startswith(BACKGROUND_NAMES):
        notes.append(f"the first class, {names[0]!r}, is taken for the background")
    if kind.bits < 16:
        notes.append(
            f"16-bit pictures use {kind.bits} bits, up to {kind.highest}: they are stored in full "
            f"range, 0 ... {2**kind.bits - 1} as 0 ... 65535, and new pictures must be alike"
        )
    details = {
        "classes": names,
        "channels": kind.channels,
        "bits": kind.bits,
        "overlapping": bool(of_classes),
        # greys would not show on grey pictures
        "palette": () if any(map(_is_grey, [*colors.values()][1:])) else tuple(colors.values()),
    }
    return Found(splits, notes=notes, details=details)


def _is_grey(color: str) -> bool:
    levels = ImageColor.getrgb(color)
    return max(levels) - min(levels) < COLOURED_FROM


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
