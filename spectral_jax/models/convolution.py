"""Convolution of size three whose kernel gets its gradient fast on CPU.

XLA writes that gradient as a convolution whose window is the whole image, which its CPU library
runs at a fifth of the speed of the forward pass. Here it is a sum of matrix products over parts of
the batch that fit into the cache.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
MANY_CHANNELS = 64  # with fewer, or with smaller arrays, XLA's gradient is as fast
LARGE = 2**20
PART_BYTES = 2**18  # a fraction of a core's cache
PART_PIXELS = 1024  # at least, so that adding up parts costs little


def conv_general_dilated(
    x: Array, kernel: Array, window_strides: Any, padding: Any, **options: Any
) -> Array:
    """`jax.lax.conv_general_dilated`, for `nn.Conv`; the gradient is another where it is faster.

    That is on one CPU. On several devices the rows of a batch would have to be gathered, and
    accelerators have a convolution for it.
    """
    plain = (
        kernel.ndim == 4
        and kernel.shape[:2] == (3, 3)
        and kernel.shape[2] == x.shape[-1]
        and tuple(window_strides) == (1, 1)
        and padding in ("SAME", [(1, 1), (1, 1)])
        and all(options.get(f"{side}_dilation") in (None, (1, 1)) for side in ("lhs", "rhs"))
        and options.get("precision") is None
    )
    known = all(isinstance(size, int) for size in x.shape)  # not so when a network is exported
    large = known and x.size >= LARGE and min(kernel.shape[2:]) >= MANY_CHANNELS
    if plain and large and jax.default_backend() == "cpu" and jax.device_count() == 1:
        return convolution(x, kernel)
    return lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


@jax.custom_vjp
def convolution(
    x: Float[Array, "b h w inputs"], kernel: Float[Array, "3 3 inputs outputs"]
) -> Float[Array, "b h w outputs"]:
    """Convolution that keeps the size (zero padding); its kernel's gradient is made for CPUs."""
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)


def _forward(x, kernel):
    return convolution(x, kernel), (x, kernel)


def _backward(residuals, g):
    x, kernel = residuals
    mirrored = kernel[::-1, ::-1].swapaxes(2, 3)
    x_gradient = lax.conv_general_dilated(g, mirrored, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
    return x_gradient, kernel_gradient(x, g).astype(kernel.dtype)


convolution.defvjp(_forward, _backward)


def kernel_gradient(
    x: Float[Array, "b h w inputs"], g: Float[Array, "b h w outputs"]
) -> Float[Array, "3 3 inputs outputs"]:
    """Nine matrix products per part of the batch: `Σ_p x[p + shift] g[p]` for each shift.

    A part is some rows of an image, or some images.
    """
    batch, height, width, inputs = x.shape
    outputs = g.shape[-1]
    pixels = max(PART_BYTES // (4 * max(inputs, outputs)), PART_PIXELS)
    rows, row_parts = split_evenly(height, pixels // width)
    images, image_parts = split_evenly(batch, pixels // (height * width))
    below, behind = row_parts * rows - height, image_parts * images - batch
    x = jnp.pad(x, ((0, behind), (1, 1 + below), (1, 1), (0, 0)))
    g = jnp.pad(g, ((0, behind), (0, below), (0, 0), (0, 0)))

    def add_part(total, part):
        image, row = part // row_parts * images, part % row_parts * rows
        x_part = lax.dynamic_slice(x, (image, row, 0, 0), (images, rows + 2, width + 2, inputs))
        g_part = lax.dynamic_slice(g, (image, row, 0, 0), (images, rows, width, outputs))
        products = [
            lax.dot_general(
                x_part[:, i : i + rows, j : j + width].reshape(-1, inputs),
                g_part.reshape(-1, outputs),
                (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
            )
            for i in range(3)
            for j in range(3)
        ]
        return [a + b for a, b in zip(total, products, strict=True)], None

    nothing = [jnp.zeros((inputs, outputs), jnp.float32)] * 9
    total, _ = lax.scan(add_part, nothing, jnp.arange(image_parts * row_parts))
    return jnp.stack(total).reshape(3, 3, inputs, outputs)


def split_evenly(size: int, most: int) -> tuple[int, int]:
    """Length and number of the fewest parts no longer than `most`; the last may be short."""
    parts = -(-size // max(most, 1))
    return -(-size // parts), parts
