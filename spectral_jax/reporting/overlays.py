"""Pictures of one slice: the image, labels drawn over it, and what a prediction got wrong."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib import colormaps
from PIL import Image, ImageColor
from scipy import ndimage

# Okabe and Ito's palette, told apart with every kind of colour vision.
ERROR_COLORS = {
    "missed (false negative)": "#e69f00",
    "added (false positive)": "#56b4e9",
    "taken for another class": "#cc79a7",
}
PAGE_PIXELS = 384  # of a picture's longer side, about; small pictures are enlarged


def data_uri(picture: UInt8[np.ndarray, "height width 3"]) -> str:
    """A picture as a JPEG inside a `data:` address."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def draw_image(
    image: UInt8[np.ndarray, "height width *channels"],
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in colour at the size of the page; of several channels the first."""
    if image.ndim == 3 and image.shape[-1] != 3:
        image = image[..., 0]
    return _resize(Image.fromarray(image).convert("RGB"), Image.Resampling.BICUBIC)


def draw_labels(
    image: UInt8[np.ndarray, "height width *channels"],
    labels: UInt8[np.ndarray, "height width"],
    colors: Sequence[str],
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with each foreground class filled in its colour and outlined."""
    return _paint(draw_image(image), _enlarge(labels), colors[1:])


def draw_errors(
    image: UInt8[np.ndarray, "height width *channels"],
    truth: UInt8[np.ndarray, "height width"],
    prediction: UInt8[np.ndarray, "height width"],
) -> UInt8[np.ndarray, "height width 3"]:
    """The image, grey and dimmed, with what was missed, added or taken for another class."""
    grey = np.asarray(Image.fromarray(draw_image(image)).convert("L"))
    dimmed = np.repeat((0.6 * grey).astype(np.uint8)[..., None], 3, axis=2)
    truth, prediction = _enlarge(truth), _enlarge(prediction)
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
    sought = _enlarge(mask) > 0
    outline = sought & ~ndimage.binary_erosion(sought, iterations=2)
    return np.where(outline[..., None], np.uint8(255), painted)


def _resize(picture: Image.Image, resampling: Image.Resampling) -> np.ndarray:
    scale = PAGE_PIXELS / max(picture.size)
    if scale > 1:  # whole pixels, so that labels stay what they are
        scale = round(scale)
    size = [max(1, round(side * scale)) for side in picture.size]
    return np.asarray(picture.resize(size, resampling))


def _enlarge(labels: np.ndarray) -> np.ndarray:
    return _resize(Image.fromarray(labels.astype(np.uint8)), Image.Resampling.NEAREST)


def _paint(
    picture: np.ndarray, labels: np.ndarray, colors: Sequence[str], opacity: float = 0.35
) -> np.ndarray:
    painted = picture.astype(float)
    for label, color in enumerate(colors, 1):
        mask = labels == label
        outline = mask & ~ndimage.binary_erosion(mask, iterations=2)
        for part, strength in ((mask, opacity), (outline, 1.0)):
            painted[part] += strength * (ImageColor.getrgb(color) - painted[part])
    return painted.round().astype(np.uint8)
