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

import numpy as np
from PIL import Image, UnidentifiedImageError

from spectral_jax.data.datasets.builder import Case, DataError, Dataset

SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif"}
MASK_SUFFIXES = ("", "_mask", "_segmentation")


def read_image(path: Path) -> np.ndarray:
    """Returns `[height, width, channels]`, uint8 or uint16, with 1 or 3 channels."""
    with _open(path) as image:
        if image.mode == "1":
            image = image.convert("L")
        elif image.mode not in ("L", "RGB") and not image.mode.startswith("I"):
            image = image.convert("RGB")  # palettes, transparency, CMYK
        array = np.asarray(image)
    if array.dtype == np.int32:  # Pillow opens some 16-bit files as 32-bit
        if array.min() < 0 or array.max() > 65535:
            raise DataError(f"{path}: values beyond 16 bit: {array.min()} ... {array.max()}")
        array = array.astype(np.uint16)
    return array if array.ndim == 3 else array[..., None]


def read_mask(path: Path, threshold: int = -1) -> np.ndarray:
    """Returns class numbers `[height, width]`, uint8; of colour masks, the first channel."""
    with _open(path) as image:
        # the numbers of a palette are its classes
        array = np.asarray(image.convert("L") if image.mode == "1" else image)
    if array.ndim == 3:
        array = array[..., 0]
    if threshold >= 0:
        return (array > threshold).astype(np.uint8)
    if array.max() > 255 or array.min() < 0:
        raise DataError(f"{path}: the mask holds {array.max()}; expected class numbers in 8 bit")
    return array.astype(np.uint8)


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: damaged, or no picture: {error}") from error
    return image


def _pairs(folder: Path) -> dict[str, tuple[Path, Path]]:
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
    pairs: dict[str, tuple[Path, Path]] = {}
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


def _load(pairs: Sequence[tuple[Path, Path]], threshold: int):
    images, masks = [], []
    for image_path, mask_path in pairs:
        image, mask = read_image(image_path), read_mask(mask_path, threshold)
        if image.shape[:2] != mask.shape:
            raise DataError(
                f"{mask_path}: the mask is {'x'.join(map(str, mask.shape))} (height x width), its "
                f"image {image_path.name} {'x'.join(map(str, image.shape[:2]))}"
            )
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{image_path}: {image.shape}, but {pairs[0][0].name} of the same case is "
                f"{images[0].shape}; slices of a volume have one size"
            )
        images.append(image)
        masks.append(mask)
    return np.stack(images), np.stack(masks), None


def read(
    root: Path,
    classes: Sequence[str] = (),
    case_pattern: str = "",
    threshold: int = -1,
):
    """Finds the pictures of each split; see the module for the layout and the options."""
    names = tuple(classes)
    if not names and (root / "classes.txt").is_file():
        names = tuple((root / "classes.txt").read_text().split("\n"))
        names = tuple(name.strip() for name in names if name.strip())
    if not names:
        if threshold < 0:
            raise DataError(
                f"{root}: class names are not known; write them, one a line and background first, "
                "to classes.txt there or set config.data.options.classes. For black-and-white masks "
                "set --config.data.options.threshold=127"
            )
        names = ("background", "foreground")
    try:
        pattern = re.compile(case_pattern) if case_pattern else None
    except re.error as error:
        raise DataError(f"case_pattern {case_pattern!r} is no regular expression: {error}") from None
    if pattern and not {"case", "slice"} <= set(pattern.groupindex):
        raise DataError(
            f"case_pattern {case_pattern!r} must name two groups: (?P<case>...) and (?P<slice>...)"
        )

    cases = {}
    for split, folders in SPLIT_FOLDERS.items():
        folder = next((root / name for name in folders if (root / name).is_dir()), None)
        if folder is None:
            if split == "validation":
                continue
            raise DataError(f"{root / split}: no such folder; expected {split}/images and /masks")
        groups: dict[str, list[tuple[int, tuple[Path, Path]]]] = {}
        for name, pair in _pairs(folder).items():
            if not pattern:
                groups[name] = [(0, pair)]
            elif match := pattern.fullmatch(name):
                groups.setdefault(match["case"], []).append((int(match["slice"]), pair))
            else:
                raise DataError(f"{pair[0]}: the name does not fit case_pattern {case_pattern!r}")
        cases[split] = []
        for case, slices in groups.items():
            ordered = [pair for _, pair in sorted(slices)]
            files = tuple(path for pair in ordered for path in pair)
            cases[split].append(Case(case, files, partial(_load, ordered, threshold)))
    return cases, names


DATASET = Dataset(
    name="folder",
    description="Pictures and masks in folders.",
    modality="any",
    channels=None,
    classes=None,
    licence="yours",
    read=read,
)
