"""Pictures and masks as pixels, read in one way for preparing, evaluating and predicting.

A picture is what viewers show: turned by its EXIF orientation, palettes looked up, 0 black. It has
one channel if it holds no colour, however it is stored. A mask holds class numbers, the colours of
classes, or black and white; a mask of another kind is refused, with what was found in it.

Every failure is a `DataError` that names the file.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num, UInt, UInt8
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError
from scipy import ndimage

from spectral_jax.data.headers import PICTURE_FORMATS, open_picture
from spectral_jax.data.parallel import available_cores, run_ahead
from spectral_jax.data.volumes import BLANK, DataError, as_label, is_blank, named

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
GREY_MODES = ("1", "L", "LA")  # of Pillow; 8 bit without colour
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
TIFF_BITS, TIFF_COMPRESSION, TIFF_PHOTOMETRIC, TIFF_KIND_OF_PAGE = 258, 259, 262, 254
LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "JPEG2000")
TIFF_JPEG = (6, 7)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
TIFF_PREVIEW_OR_TRANSPARENCY = 1 | 4

WHITE_ABOVE = 127  # of 255: JPEG rings and resizing blurs masks of 0 and 255
# a region is where squares of so many pixels vary by no more grey levels: edges never do
FLAT_PIXELS, FLAT_LEVELS = 2, 0
FLAT_PIXELS_IN_JPEG, FLAT_LEVELS_IN_JPEG = 3, 8
FEW_COLORS = 16  # drawn and not compressed: thin lines count too
ONE_LEVEL = 24  # grey levels by which colours are still one, compressed or smoothed
LOW_NUMBERS = 8  # grey levels that are class numbers beside a 255
SEEN_SHARE = 0.002  # of what is not black: a smaller region is an accident of compression

TURNED = (
    "turned by the EXIF orientation, as viewers show the picture; masks belong to the turned one"
)
TRANSPARENT = "transparent pixels are taken in the colour that is stored under them"
DEEP_COLOUR = "16-bit colour is read with 8 bits"


def in_8_bits(image: UInt[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """A uint8 or uint16 image to look at: of 16 bits the upper 8."""
    return (image >> 8).astype(np.uint8) if image.dtype == np.uint16 else image


def to_show(
    image: UInt[np.ndarray, "height width channels"],
) -> UInt8[np.ndarray, "height width *colours"]:
    """An image to look at: of channels that are no colours the first."""
    return in_8_bits(image if image.shape[-1] == 3 else image[..., 0])


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as viewers show it.

    Attributes:
      pixels: `[height, width, channels]`, uint8 or uint16; one channel if it holds no colour.
      turned: whether its EXIF orientation turned or mirrored it.
      dpi: of columns and rows, or None where unknown.
      notes: what was read otherwise than it is stored, for a person to know.
    """

    pixels: Num[np.ndarray, "height width channels"]
    turned: bool = False
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


def read_picture(path: Path) -> Picture:
    """Reads a picture.

    Raises:
      DataError: for a damaged file, several pages, fractions, or colours other than grey, RGB,
        CMYK and palettes.
    """
    with _opened(path) as file:
        dpi = file.info.get("dpi")
        deep = ";16" in _raw_mode(file) and not file.mode.startswith("I")
        shown, turned = _turned(file)
        pixels = _pixels(file, shown, path)
        transparent = _alpha(shown) is not None
    if pixels.dtype.kind == "f":
        raise DataError(f"{path}: a picture of 32-bit floats; expected 8 or 16 bit: save it so")
    texts = {
        TURNED: turned,
        TRANSPARENT: transparent,
        DEEP_COLOUR: deep,
        BLANK: is_blank(pixels),
    }
    notes = tuple(text for text, applies in texts.items() if applies)
    return Picture(pixels if pixels.ndim == 3 else pixels[..., None], turned, dpi, notes)


def read_image(path: Path) -> Num[np.ndarray, "height width channels"]:
    """The pixels of a picture: see `read_picture`."""
    return read_picture(path).pixels


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens a file of one picture, of which nothing is decoded yet."""
    with named(path, "picture"), _identified(path) as file:
        pages = _count_pages(file)
        if pages > 1:
            raise DataError(
                f"{path}: holds {pages} pages; expected one picture in a file: save each page as a "
                "file of its own (of a volume, numbered: see case_pattern of the data set folder)"
            )
        if file.mode not in (*GREY_MODES, *COLOUR_MODES, "F") and not file.mode.startswith("I"):
            raise DataError(
                f"{path}: colours of kind {file.mode}; expected grey or RGB: save it so"
            )
        yield file


@contextlib.contextmanager
def _identified(path: Path) -> Iterator[Image.Image]:
    try:
        opened = contextlib.ExitStack()
        file = opened.enter_context(open_picture(path))
    except UnidentifiedImageError:
        with path.open("rb") as content:
            start = content.read(4)
        if start in TIFF_STARTS:  # Pillow reads the usual ones
            raise DataError(f"{path}: a TIFF of a kind that is not read; save it as PNG") from None
        kinds = ", ".join(PICTURE_FORMATS)
        raise ValueError(f"its content is none of {kinds}; save it as PNG") from None
    with opened:
        yield file


def _tag(file: Image.Image, number: int) -> Any:
    """The value of a TIFF tag; None without it, and for other formats."""
    return file.tag_v2.get(number) if isinstance(file, TiffImagePlugin.TiffImageFile) else None


def _count_pages(file: Image.Image) -> int:
    """Pages, but for the previews that cameras and scanners add."""
    count = getattr(file, "n_frames", 1)
    if isinstance(file, TiffImagePlugin.TiffImageFile) and count > 1:
        kinds = []
        for page in range(count):
            file.seek(page)
            kinds.append(file.tag_v2.get(TIFF_KIND_OF_PAGE, 0))
        file.seek(0)
        return sum(not kind & TIFF_PREVIEW_OR_TRANSPARENCY for kind in kinds)
    return 1 if file.format == "MPO" else count


def _raw_mode(file: Image.Image) -> str:
    """What Pillow calls the values in the file, such as "RGB;16B"; "" where it does not tell."""
    tiles = getattr(file, "tile", None)
    args = tiles[0].args if tiles else ""
    return str(args if isinstance(args, str) else args[0] if args else "")


def _turned(file: Image.Image) -> tuple[Image.Image, bool]:
    """The decoded picture as viewers show it, and whether that differs from how it is stored."""
    try:
        turned = file.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # broken EXIF data make no broken picture
        turned = False
    file.load()  # turns TIFF
    return (ImageOps.exif_transpose(file) if turned else file), turned


def _pixels(file: Image.Image, shown: Image.Image, path: Path) -> np.ndarray:
    """`[height, width]` without colour, `[height, width, 3]` with; uint8, uint16 or float32."""
    if shown.mode == "F":
        return np.asarray(shown)
    if shown.mode.startswith("I"):
        array = np.asarray(shown)
        array = array.astype(array.dtype.newbyteorder("="))
        if _tag(file, TIFF_PHOTOMETRIC) == 0:  # white is zero
            array = 2 ** _tag(file, TIFF_BITS)[0] - 1 - array.astype(np.int64)
        if array.min() < 0 or array.max() > 65535:
            raise DataError(f"{path}: values beyond 16 bit: {array.min()} ... {array.max()}")
        return array.astype(np.uint16)
    if shown.mode in GREY_MODES:
        return np.asarray(shown if shown.mode == "L" else shown.convert("L"))
    array = np.asarray(shown if shown.mode == "RGB" else shown.convert("RGB"))
    red, green, blue = (array[..., channel] for channel in range(3))
    return red if np.array_equal(red, green) and np.array_equal(red, blue) else array


def _alpha(shown: Image.Image) -> UInt8[np.ndarray, "height width"] | None:
    """How opaque each pixel is; None if all are, wholly."""
    if not shown.has_transparency_data or shown.mode.startswith("I"):
        return None
    alpha = np.asarray(shown.convert("RGBA").getchannel("A"))
    return alpha if alpha.min() < 255 else None


# --- what a set holds, and how it is stored -------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """What the pictures of a set have in common.

    Attributes:
      channels: 3 if any holds colour, otherwise 1.
      bits: how many bits the values of 16-bit pictures use.
      highest: the highest value of 16-bit pictures; 0 where there are none.
    """

    channels: int
    bits: int
    highest: int


def find_kind(paths: Iterable[Path]) -> Kind:
    """Looks through pictures, decoding no more than it takes; damaged ones count for nothing."""
    highest = 0
    for channels, of_picture in run_ahead(_look, paths, available_cores()):
        if channels == 3:
            return Kind(3, 16, 0)
        highest = max(highest, of_picture)
        if highest >= 2**12:
            return Kind(1, 16, highest)
    bits = next((bits for bits in (8, 10, 12) if 0 < highest < 2**bits), 16)
    return Kind(1, bits, highest)


def _look(path: Path) -> tuple[int, int]:
    """Channels of a picture, and its highest value if it has 16 bit."""
    try:
        with _opened(path) as file:
            if file.mode in GREY_MODES:
                return 1, 0
        pixels = read_image(path)
    except DataError:  # named, with all others, when cases are read
        return 1, 0
    return pixels.shape[-1], int(pixels.max()) if pixels.dtype == np.uint16 else 0


def as_stored(image: np.ndarray, channels: int, bits: int, path: Path) -> np.ndarray:
    """Pictures as a data set stores them.

    Args:
      image: `[..., 1 or 3]`, uint8 or uint16.
      channels: of the data set: grey becomes three equal channels, and the other way round.
      bits: how many of its 16 bits the data set uses; its range becomes that of 16 bits.
      path: to be named in errors.

    Raises:
      DataError: for colour where the data set is grey, and for values beyond its bits.
    """
    return fit_channels(_full_range(image, bits, path), channels, path)


def _full_range(image: np.ndarray, bits: int, path: Path) -> np.ndarray:
    if image.dtype != np.uint16 or bits == 16:
        return image
    highest = 2**bits - 1
    if image.max() > highest:
        raise DataError(
            f"{path}: the highest value is {image.max()}, but the 16-bit pictures of the data set "
            f"use {bits} bits, 0 ... {highest}; save it in their range"
        )
    return np.rint(image * (65535 / highest)).astype(np.uint16)


def fit_channels(image: np.ndarray, channels: int, path: Path | str) -> np.ndarray:
    """Repeats grey, or takes one of three equal channels.

    Raises:
      DataError: for colour where grey is expected.
    """
    have = image.shape[-1]
    if have == channels:
        return image
    if have == 1:
        return np.broadcast_to(image, (*image.shape[:-1], channels))  # takes no memory
    if channels == 1 and (image == image[..., :1]).all():
        return image[..., :1]
    raise DataError(
        f"{path}: {have} channels with colour in them, but {channels} expected: the others, or "
        "what the network was trained on, are grey; save it as grey"
    )


# --- masks ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Mask:
    """A mask as viewers show it, and as it is stored.

    Attributes:
      shown: `[height, width]` grey or `[height, width, 3]` colour; transparency where the shape is.
      numbers: `[height, width]` grey values or indices of a palette; None for colours.
      lossy: whether compression may have changed the values.
    """

    shown: np.ndarray
    numbers: np.ndarray | None
    lossy: bool


def _read_mask(path: Path) -> _Mask:
    with _opened(path) as file:
        lossy = file.format in LOSSY_FORMATS or _tag(file, TIFF_COMPRESSION) in TIFF_JPEG
        image, _ = _turned(file)
        pixels, alpha = _pixels(file, image, path), _alpha(image)
        numbers = np.asarray(image) if image.mode == "P" else pixels
    if alpha is not None:
        flat = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
        one_colour, varies = (flat == flat[0]).all(), alpha.min() < alpha.max()
        if one_colour and (varies or not alpha.any()):  # the shape is in the transparency
            pixels = numbers = alpha
        elif varies and flat[alpha.ravel() == 0].any():
            raise DataError(
                f"{path}: transparent pixels hold colour, so it is not clear whether the colours "
                "or the transparency are the mask; save it without transparency (flattened)"
            )
    return _Mask(pixels, numbers if numbers.ndim == 2 else None, lossy)


def read_mask(
    path: Path, colors: Mapping[str, str] | None = None
) -> UInt8[np.ndarray, "height width"]:
    """Reads class numbers: grey values, indices of a palette, or the places of colours in a list.

    Args:
      path: of a picture.
      colors: "#rrggbb" of each class by its name, in order. A mask may hold class numbers even so.

    Raises:
      DataError: for JPEG, which changes the numbers; for colours that stand for no class.
    """
    mask = _read_mask(path)
    if mask.lossy:
        raise DataError(
            f"{path}: compressed as JPEG is, which changes class numbers and colours and makes "
            "classes that nobody drew; save masks as PNG, from what they were drawn with"
        )
    if colors:
        keys = _color_keys(mask.shown)
        table = {int(color[1:], 16): number for number, color in enumerate(colors.values())}
        found, places = np.unique(keys, return_inverse=True)
        if table.keys() >= set(found.tolist()):
            numbers = np.array([table[key] for key in found.tolist()], np.uint8)
            return numbers[places].reshape(keys.shape)
        if mask.numbers is None or mask.numbers.max() >= len(colors):
            known = ", ".join(f"{name} {color}" for name, color in colors.items())
            unknown = [key for key in found.tolist() if key not in table]
            raise DataError(
                f"{path}: {_describe(mask.shown, unknown)} is the colour of no class; known are "
                f"{known}. Where edges are smoothed, save the mask without smoothing"
            )
    if mask.numbers is None:
        raise DataError(
            f"{path}: a mask of colours, {_describe(mask.shown)}; expected class numbers 0, 1, 2 "
            "... If colours stand for classes, say which: in classes.txt, one a line and "
            "background first, such as 'liver #00ff00'"
        )
    return as_label(mask.numbers, path)


def read_binary_mask(
    path: Path, threshold: int = WHITE_ABOVE, ignore_label: int | None = None
) -> UInt8[np.ndarray, "height width"]:
    """Returns 1 where a mask is white: masks of 0 and 1, black and a colour, and greys at edges.

    JPEG rings and resizing blurs, so that masks of 0 and 255 hold greys; they are cut at the
    threshold, of 255. What has the value `ignore_label`, neither 0 nor 1, keeps it.

    Raises:
      DataError: for a mask of more than two levels or colours, or of a dark one; with
        `ignore_label`, for JPEG or colours.
    """
    mask = _read_mask(path)
    ignored = np.zeros(mask.shown.shape[:2], bool)
    if ignore_label is not None:
        if mask.lossy or mask.numbers is None:
            kind = "compressed as JPEG is" if mask.lossy else "a mask of colours"
            raise DataError(
                f"{path}: {kind}, which has no ignore_label={ignore_label}; save masks in grey or "
                "with a palette, as PNG"
            )
        ignored = mask.numbers == ignore_label
        shown = mask.shown.copy()
        shown[ignored] = 0
        mask = dataclasses.replace(mask, shown=shown)
    values = mask.shown.max(-1) if mask.shown.ndim == 3 else mask.shown
    if values.dtype.kind == "f":
        values = as_label(values, path)
    highest = int(values.max())
    if highest > 255:  # 16 bit
        threshold *= 257
    if (1 < highest <= threshold) or (highest == 1 and mask.lossy):
        raise DataError(
            f"{path}: the brightest value is {highest}, and nothing is above {threshold}: expected "
            "black and white, 0/1 or 0/255. Of the data set folder, name the classes in "
            "classes.txt if masks hold class numbers, and lower --config.data.options.threshold "
            "if they are dark"
        )
    if highest > 1:
        _check_two_levels(mask, values, highest, threshold, path)
    white = values > (0 if highest == 1 else threshold)
    return np.where(ignored, ignore_label or 0, white).astype(np.uint8)


def _check_two_levels(
    mask: _Mask, values: np.ndarray, highest: int, threshold: int, path: Path
) -> None:
    """Raises DataError if more than black and one colour cover regions, not just edges."""
    shown = (mask.shown >> 8).astype(np.uint8) if highest > 255 else mask.shown.astype(np.uint8)
    if Image.fromarray(shown).getcolors(2) is not None:
        several = threshold < values.min() and len(np.unique(_color_keys(shown))) > 1
    else:
        # a PNG of many levels may once have been a JPEG
        drawn = not mask.lossy and Image.fromarray(shown).getcolors(FEW_COLORS) is not None
        colors = _flat_colors(shown, drawn)
        several = len(colors) > 1 or (
            len(colors) == 1 and drawn and _are_others_seen(shown, colors[0])
        )
    if several or (not mask.lossy and _numbers_beside_white(values)):
        raise DataError(
            f"{path}: {_describe(shown)}: more than black and one colour, so it is not clear what "
            "is foreground. Make it black and white. Where a value marks what is not known, say "
            "which: --config.data.options.ignore_label=255. Where values or colours stand for "
            "classes, name them in classes.txt (data set folder), one a line and background first, "
            "such as 'liver #00ff00' or 'border #808080'"
        )


def _numbers_beside_white(values: np.ndarray) -> bool:
    """Whether low numbers are used beside one bright value, as 1 for object and 255 for void."""
    *others, _ = np.flatnonzero(np.bincount(values.ravel()))
    return len(others) > 0 and bool(0 < others[-1] <= LOW_NUMBERS)


def _flat_colors(shown: UInt8[np.ndarray, "..."], drawn: bool) -> list[int]:
    """Colours other than black that fill regions, not just edges, as 0xrrggbb."""
    pixels = FLAT_PIXELS if drawn else FLAT_PIXELS_IN_JPEG
    tolerance = FLAT_LEVELS if drawn else FLAT_LEVELS_IN_JPEG
    planes = [shown] if shown.ndim == 2 else list(np.moveaxis(shown, -1, 0))
    spread = [
        ndimage.maximum_filter(plane, pixels) - ndimage.minimum_filter(plane, pixels)
        for plane in planes
    ]
    flat = np.max(spread, axis=0) <= tolerance
    keys, counts = np.unique(_color_keys(shown)[flat], return_counts=True)
    sizes = {0: 0}  # of regions, by the colour that is most frequent in them
    for index in np.argsort(-counts, kind="stable"):
        key = int(keys[index])
        region = next((color for color in sizes if _distance(key, color) <= ONE_LEVEL), key)
        sizes[region] = sizes.get(region, 0) + int(counts[index])
    del sizes[0]
    least = SEEN_SHARE * sum(sizes.values())
    return [color for color, size in sizes.items() if size > least]


def _are_others_seen(shown: UInt8[np.ndarray, "..."], color: int) -> bool:
    """Whether thin lines have colours that smoothing does not make of a colour and black."""
    keys, counts = np.unique(_color_keys(shown), return_counts=True)
    planes = np.stack([keys >> shift & 255 for shift in (16, 8, 0)], -1)
    main = np.array([color >> shift & 255 for shift in (16, 8, 0)])
    brightness = planes.max(-1, keepdims=True)
    smoothed = np.minimum(brightness / main.max(), 1) * main
    others = np.abs(planes - smoothed).max(-1) > ONE_LEVEL
    seen = brightness[:, 0] > ONE_LEVEL
    return counts[others & seen].sum() > SEEN_SHARE * counts[seen].sum()


def _color_keys(shown: np.ndarray) -> np.ndarray:
    """Colours of 8 bit as numbers, 0xrrggbb."""
    planes = [shown] * 3 if shown.ndim == 2 else np.moveaxis(shown, -1, 0)
    red, green, blue = (plane.astype(np.int32) for plane in planes)
    return red << 16 | green << 8 | blue


def _distance(one: int, other: int) -> int:
    return max(abs((one >> shift & 255) - (other >> shift & 255)) for shift in (16, 8, 0))


def _describe(shown: np.ndarray, keys: Sequence[int] = (), most: int = 6) -> str:
    """The most frequent values or colours of a mask, with their shares."""
    values = shown if shown.ndim == 2 else _color_keys(shown)
    found, counts = np.unique(values, return_counts=True)
    order = [
        index for index in np.argsort(-counts, kind="stable") if not keys or found[index] in keys
    ]
    names = [
        f"{found[index] if shown.ndim == 2 else f'#{found[index]:06x}'} "
        f"({100 * counts[index] / values.size:.2g} %)"
        for index in order[:most]
    ]
    more = f" and {len(order) - most} more" if len(order) > most else ""
    return f"{', '.join(names)}{more}"
