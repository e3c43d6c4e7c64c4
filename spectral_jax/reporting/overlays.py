"""Pictures of one slice: the image, labels drawn over it, and what a prediction got wrong."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from PIL import Image, ImageColor
from scipy import ndimage

# brighter than the colours of classes, and told apart with every kind of colour vision
ERROR_COLORS = {
    "missed (false negative)": "#ff0080",
    "added (false positive)": "#00ffff",
    "taken for another class": "#8000ff",
}
PAGE_PIXELS = 384  # of a picture's longer side on a page, about; small pictures are enlarged
SMALL_PIXELS = 192  # where there are many
SCREEN_PIXELS = 1024  # of the longer side of a picture of its own, at least
MOST_PIXELS = 4096  # and at most


def data_uri(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """A picture as a JPEG inside a `data:` address."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def page_size(shape: Sequence[int], longest: int = PAGE_PIXELS) -> tuple[int, int]:
    """Width and height on a page of a picture `(height, width, ...)`."""
    scale = longest / max(shape[:2])
    if scale > 1:  # whole pixels, so that labels stay what they are
        scale = round(scale)
    return _scaled(shape, scale)


def screen_size(shape: Sequence[int]) -> tuple[int, int]:
    """Width and height of a picture that fills a screen, or its own where that is larger."""
    longest = max(shape[:2])
    return _scaled(shape, min(max(longest, SCREEN_PIXELS), MOST_PIXELS) / longest)


def _scaled(shape: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))


def draw_image(
    image: UInt8[np.ndarray, "height width *channels"], size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in colour, or its first channel, at a width and height; or those of the page."""
    size = size or page_size(image.shape)
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image[..., 0]
    picture = Image.fromarray(image).convert("RGB")
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def draw_labels(
    image: UInt8[np.ndarray, "height width *channels"],
    labels: UInt8[np.ndarray, "height width"],
    colors: Sequence[str],
    size: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with each foreground class filled in its colour and outlined."""
    picture = draw_image(image, size)
    return _paint(picture, _resize_labels(labels, picture.shape[1::-1]), colors[1:])


def draw_errors(
    image: UInt8[np.ndarray, "height width *channels"],
    truth: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
    size: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "height width 3"]:
    """The image, grey and dimmed, with what was missed, added or taken for another class."""
    grey = np.asarray(Image.fromarray(draw_image(image, size)).convert("L"))
    dimmed = np.repeat((0.6 * grey).astype(np.uint8)[..., None], 3, axis=2)
    truth, prediction = (_resize_labels(of, dimmed.shape[1::-1]) for of in (truth, prediction))
    errors = np.select([truth == prediction, prediction == 0, truth == 0], [0, 1, 2], default=3)
    return _paint(dimmed, errors, tuple(ERROR_COLORS.values()), opacity=0.85)


def draw_map(
    image: UInt8[np.ndarray, "height width *channels"],
    heat: Float[np.ndarray, "height width"],
    mask: Bool[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
    """The image, grey, under a map of weights from 0, with the outline of what was sought."""
    grey = np.asarray(Image.fromarray(draw_image(image)).convert("L"))[..., None] / 255
    strength = np.clip(np.nan_to_num(heat.astype(np.float32)), 0, None)
    strength /= strength.max() or 1
    size = grey.shape[1::-1]
    strength = np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BILINEAR))
    colors = colormaps["inferno"](strength)[..., :3]
    opacity = 0.75 * strength[..., None] ** 0.5
    painted = (255 * ((1 - opacity) * grey + opacity * colors)).round().astype(np.uint8)
    sought = _resize_labels(mask, size) > 0
    outline = sought & ~ndimage.binary_erosion(sought, iterations=2)
    return np.where(outline[..., None], np.uint8(255), painted)


def _resize_labels(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    picture = Image.fromarray(labels.astype(np.uint8))
    return np.asarray(picture.resize((size[0], size[1]), Image.Resampling.NEAREST))


def _paint(
    picture: np.ndarray, labels: np.ndarray, colors: Sequence[str], opacity: float = 0.35
) -> np.ndarray:
    painted = picture.copy()
    width = max(2, max(labels.shape) // 400)
    for label, color in enumerate(colors, 1):
        mask = labels == label
        if not mask.any():
            continue
        outline = mask & ~ndimage.binary_erosion(mask, iterations=width)
        rgb = np.array(ImageColor.getrgb(color)[:3])
        for part, strength in ((mask, opacity), (outline, 1.0)):
            mixed = painted[part] + strength * (rgb - painted[part].astype(float))
            painted[part] = mixed.round().astype(np.uint8)
    return painted
