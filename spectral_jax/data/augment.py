"""Augmentation on the device, inside the compiled step, of pictures and of 3-D patches in plane.

One resampling does all of the geometry: each output pixel is sampled from its source position.
Images are interpolated linearly; labels take the nearest pixel, so no class appears that was not
there.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Integer, Key

TILE = 16  # pixels of the output along each axis that are looked up in one patch


def to_unit_range(images: Array) -> Float[Array, "batch *spatial channels"]:
    """Scales uint8 or uint16 images to [0, 1] in float32; others are cast only."""
    if jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(jnp.float32) / jnp.iinfo(images.dtype).max
    return images.astype(jnp.float32)


def augment(
    key: Key[Array, ""],
    images: Float[Array, "batch *depth height width channels"],
    labels: Integer[Array, "batch *depth height width"],
    *,
    flip: bool = True,
    quarter_turns: bool = True,
    rotation_degrees: float = 20.0,
    scale: float = 0.1,
    shift: float = 0.05,
    affine_probability: float = 0.5,
    contrast: float = 0.1,
    brightness: float = 0.1,
    gamma: float = 0.1,
    noise: float = 0.0,
) -> tuple[
    Float[Array, "batch *depth height width channels"], Integer[Array, "batch *depth height width"]
]:
    """Changes each example at random, by its own key: `fold_in(key, index in the global batch)`.

    Args:
      key: of this step.
      images: in [0, 1]; all slices of a patch change alike, within their planes.
      labels: class numbers.
      flip: mirror each axis or not, evenly.
      quarter_turns: turn by 0 to 3 right angles, evenly; square images only.
      rotation_degrees: the most to turn to either side.
      scale: the most to grow or shrink, as a share.
      shift: the most to move along each axis, as a share of its size.
      affine_probability: how often rotation, scale and shift happen.
      contrast: the most that differences from the mean grow or shrink, as a share.
      brightness: the most that is added or taken away.
      gamma: the most that the exponent's logarithm differs from 0.
      noise: the most that the standard deviation of Gaussian noise can be.

    Returns:
      Images and labels of the same shapes and types. What comes from outside an image is its
      nearest border pixel, in the label too.
    """
    height, width = images.shape[-3:-1]
    if quarter_turns and height != width:
        raise ValueError(f"quarter_turns needs square images, got {height} x {width}")
    moves = flip or quarter_turns or affine_probability > 0
    steepest = min(math.radians(rotation_degrees), math.pi / 4)
    stretch = (1 + scale) * (math.cos(steepest) + math.sin(steepest))

    def one(index, image, label):
        geometry, intensity = jax.random.split(jax.random.fold_in(key, index))
        draws = jax.random.uniform(geometry, (8,), minval=-1)
        affine = jnp.abs(draws[0]) < affine_probability
        angle = jnp.where(affine, jnp.deg2rad(rotation_degrees) * draws[1], 0.0)
        zoom = jnp.where(affine, 1 + scale * draws[2], 1.0)
        moved = jnp.where(affine, shift * draws[3:5], 0.0) * jnp.array([height, width])
        mirror = jnp.where(draws[5:7] < 0, -1.0, 1.0) if flip else jnp.ones(2)
        turns = jnp.floor(2 * (draws[7] + 1)) if quarter_turns else 0.0
        # exact right angles, so that without an affine part every pixel is looked up exactly
        cosine, sine = (1 - jnp.abs(2 - (turns + a) % 4) for a in (2, 1))
        quarter = jnp.array([[cosine, -sine], [sine, cosine]])
        rotate = jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
        matrix = zoom * jnp.matmul(quarter * mirror, rotate, precision="highest")

        centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
        grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"))
        offset = grid - centre[:, None, None]
        # spelt out, as sums that a library orders by shape differ in the last bit between devices
        source = jnp.stack(
            [
                row[0] * offset[0] + row[1] * offset[1] + start
                for row, start in zip(matrix, centre + moved, strict=True)
            ]
        )
        if moves:
            image = look_up(image, source, order=1, stretch=stretch)
            label = look_up(label[..., None], source, order=0, stretch=stretch)[..., 0]
        return change_intensity(intensity, image), label

    def change_intensity(key, image):
        key, noise_key = jax.random.split(key)
        draws = jax.random.uniform(key, (4,), minval=-1)
        # of 8-bit levels: a sum of integers is the same in any order, so on any number of devices
        mean = jnp.sum(jnp.round(255 * image).astype(int)) / (255 * image.size)
        image = mean + (1 + contrast * draws[0]) * (image - mean) + brightness * draws[1]
        image = jnp.clip(image, 0, 1) ** jnp.exp(gamma * draws[2])
        if noise:
            values = jax.random.normal(noise_key, (image.size,)).reshape(image.shape)
            image = image + noise * jnp.abs(draws[3]) * values
        return image

    return jax.vmap(one)(jnp.arange(len(images)), images, labels)


def look_up(
    image: Array, source: Float[Array, "2 height width"], *, order: int, stretch: float
) -> Array:
    """The image at other places, in the way that suits the backend.

    A TPU looks up single numbers one after the other, and has matrix units; CPU and GPU read a
    pixel faster than they multiply a patch. The two ways agree to 3e-5 of an image's largest value
    (a TPU multiplies float32 in three bfloat16 parts), labels exactly.

    Args:
      image: `[*depth, height, width, channels]`; all slices and channels are looked up alike.
      source: row and column of each output pixel; the nearest border pixel where it is outside.
      order: 1 interpolates linearly, 0 takes the nearest pixel.
      stretch: how far apart neighbours of the output can be along an axis of the image, at most,
        in a walk along both axes.
    """
    return lax.platform_dependent(
        image,
        source,
        tpu=partial(look_up_by_products, order=order, stretch=stretch),
        default=partial(look_up_by_index, order=order),
    )


def look_up_by_index(image: Array, source: Float[Array, "2 height width"], *, order: int) -> Array:
    """`look_up`, pixel by pixel."""
    plane = partial(map_coordinates, coordinates=list(source), order=order, mode="nearest")
    plane = jax.vmap(plane, in_axes=-1, out_axes=-1)  # over channels
    return (plane if image.ndim == 3 else jax.vmap(plane))(image)


def look_up_by_products(
    image: Array, source: Float[Array, "2 height width"], *, order: int, stretch: float
) -> Array:
    """`look_up` by matrix products.

    A tile of the output comes from a small patch of the image. Products with rows of the identity
    cut the patch; a product with the weights of its rows, and a sum with those of its columns,
    give the pixels.
    """
    height, width, channels = image.shape[-3:]
    patch = [min(size, math.ceil((TILE - 1) * stretch) + 2) for size in (height, width)]
    padding = [(0, 0), (0, -height % TILE), (0, -width % TILE)]
    rows, columns = -(-height // TILE), -(-width // TILE)
    tiles = jnp.pad(source, padding, mode="edge").reshape(2, rows, TILE, columns, TILE)
    tiles = tiles.swapaxes(2, 3).reshape(2, rows * columns, TILE**2)

    cut, weights = [], []
    for place, size, length in zip(tiles, (height, width), patch, strict=True):
        place = jnp.clip(place, 0, size - 1)
        first = jnp.clip(jnp.floor(jnp.min(place, axis=1)), 0, size - length)[:, None, None]
        along = jnp.arange(length)
        cut.append(jnp.asarray(first + along[:, None] == jnp.arange(size), jnp.float32))
        distance = jnp.abs((lax.round(place) if order == 0 else place)[..., None] - first - along)
        weights.append(jnp.maximum(1 - distance, 0))

    # class numbers of one byte are whole in bfloat16
    exact = order == 0 and image.dtype.itemsize == 1
    product = partial(jnp.einsum, precision="default" if exact else "high")
    planes = jnp.moveaxis(image.astype(jnp.float32).reshape(-1, height, width, channels), 0, 2)
    x = planes.reshape(height, width, -1)
    x = product("tph,hwc->tpwc", cut[0], x)
    x = product("tqw,tpwc->tqpc", cut[1], x)
    x = product("tnp,tqpc->tnqc", weights[0], x)
    x = jnp.sum(x * weights[1][..., None], axis=2)

    x = x.reshape(rows, columns, TILE, TILE, -1).swapaxes(1, 2)
    x = x.reshape(rows * TILE, columns * TILE, -1, channels)[:height, :width]
    return jnp.moveaxis(x, 2, 0).reshape(image.shape).astype(image.dtype)
