"""Neighbouring pixels side by side in the channels, for hardware with wide registers.

A TPU holds the last axis of an array in rows of 128 numbers, and its matrix unit has 128 rows and
columns: images of 16 or 64 channels fill an eighth or half of both, in memory too. An image
`[batch, *rows, width, channels]` packed by `p` is `[batch, *rows, width / p, p * channels]`, the
same numbers in the same order; layers on it are the layers of the image with kernels spread out.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from spectral_jax.models.initializers import kernel_normal
from spectral_jax.models.layers import larger

MOST = 8  # pixels side by side: a spread kernel grows with their square


def packing_of(lanes: int, channels: int, width: int) -> int:
    """How many pixels fit side by side: a power of two that divides the width; 1 for no packing."""
    return math.gcd(2 ** int(math.log2(min(MOST, max(1, lanes // channels)))), width)


def repack(x: Array, before: int, after: int) -> Array:
    """Packs an image otherwise; 1 is unpacked. Free in memory, not on a TPU."""
    *rows, width, channels = x.shape
    return x.reshape(*rows, width * before // after, channels // before * after)


def spread_kernel(
    kernel: Float[Array, "*window inputs outputs"], packing: int
) -> Float[Array, "*window packed_inputs packed_outputs"]:
    """The kernel of size three that does on a packed image what `kernel` does on the image.

    Output pixel `r` of a pack sees input pixel `s` of the pack before, its own or the next one
    where they are neighbours; elsewhere the kernel is zero.
    """
    pack, inside, of = np.ogrid[-1:2, :packing, :packing]
    offset = pack * packing + inside - of + 1
    taps = (offset[..., None] == np.arange(3)).astype(np.float32)
    spread = jnp.einsum("tsrx,...xio->...tsiro", taps, kernel, precision="highest")
    *window, inputs, outputs = kernel.shape
    return spread.reshape(*window, packing * inputs, packing * outputs)


def repeat_kernel(
    kernel: Float[Array, "inputs outputs"], packing: int
) -> Float[Array, "packed_inputs packed_outputs"]:
    """The dense kernel that does on each pixel of a pack what `kernel` does on a pixel."""
    return jnp.kron(jnp.eye(packing, dtype=kernel.dtype), kernel)


def convolve(
    images: Sequence[Float[Array, "batch *rows width _"]],
    kernel: Float[Array, "*window inputs outputs"],
    packing: int,
) -> Float[Array, "batch *rows width packed_outputs"]:
    """Convolution of size three, zeros around, of images whose channels stand one after another."""
    channels = [image.shape[-1] // packing for image in images]
    kernels = jnp.split(kernel, np.cumsum(channels)[:-1], axis=-2)
    spread = [spread_kernel(part, packing) for part in kernels]
    x = jnp.concatenate(images, axis=-1)
    return lax.conv_general_dilated(
        x,
        jnp.concatenate(spread, axis=-2).astype(x.dtype),
        window_strides=(1,) * (x.ndim - 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC") if x.ndim == 4 else ("NDHWC", "DHWIO", "NDHWC"),
    )


def max_pool(
    x: Float[Array, "batch *rows width channels"], packing: int
) -> Float[Array, "batch *half_rows half_width channels"]:
    """Maximum over windows of two along each spatial axis, packed by half as many pixels."""
    for axis in range(1, x.ndim - (2 if packing > 1 else 1)):
        pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        x = larger(*(lax.index_in_dim(pairs, i, axis + 1, keepdims=False) for i in range(2)))
    if packing > 1:
        pixels = jnp.split(x, packing, axis=-1)
        pairs = zip(pixels[::2], pixels[1::2], strict=True)
        x = jnp.concatenate([larger(*pair) for pair in pairs], axis=-1)
    return x


def upconvolve(
    x: Float[Array, "batch *rows width inputs"],
    kernel: Float[Array, "inputs blocks"],
    bias: Float[Array, "features"],
    packing: int,
    after: int,
) -> Float[Array, "batch *double_rows double_width outputs"]:
    """Transposed convolution with kernel and stride two, packed by `after`, 1 or twice `packing`.

    The pixels of a window are axes of their own until the end: so XLA lays them out in memory as
    the output has them, and the gradient needs no transposed copy.
    """
    inputs = kernel.shape[0]
    axes = x.ndim - 2 if after == 1 else x.ndim - 3
    kernel = kernel.reshape(inputs, *(2,) * axes, -1)
    if after > 1:
        # for each pixel of a pack the two that it makes, which stay neighbours
        kernel = jnp.einsum("st,i...c->si...tc", jnp.eye(packing), kernel, precision="highest")
        kernel = kernel.reshape(packing * inputs, *(2,) * axes, -1)
    y = jnp.tensordot(x, kernel.astype(x.dtype), 1) + jnp.tile(bias, after)
    window = range(x.ndim - 1, x.ndim - 1 + axes)
    order = [axis for i in range(axes) for axis in (1 + i, window[i])]
    y = y.transpose(0, *order, *range(1 + axes, x.ndim - 1), y.ndim - 1)
    doubled = (2 * size for size in x.shape[1 : 1 + axes])
    return y.reshape(len(x), *doubled, *x.shape[1 + axes : -1], -1)


class Kernel(nn.Module):
    """The kernel of a layer by itself, with its bias if it has one."""

    shape: tuple[int, ...]
    bias: bool = False

    @nn.compact
    def __call__(self) -> Any:
        kernel = self.param("kernel", kernel_normal, self.shape)
        if not self.bias:
            return kernel
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[-1:])


class Normalisation(nn.Module):
    """`nn.BatchNorm`, or `nn.GroupNorm` where `groups` says how many, of a packed image.

    Attributes:
      packing: of the image.
      groups: of channels, normalised in each example; 0 for batch normalisation.
      momentum: of the running statistics of batch normalisation.
      epsilon: added to the variance.
    """

    packing: int
    groups: int = 0
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "batch *spatial _"], *, train: bool):
        channels = x.shape[-1] // self.packing
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def moments(axes):
            packs = [jnp.mean(power, axis=axes) for power in (x, jnp.square(x))]
            return [p.reshape(*p.shape[:-1], self.packing, channels).mean(-2) for p in packs]

        def variance(mean, square):
            return jnp.maximum(square - jnp.square(mean), 0)

        if self.groups:
            examples = [
                m.reshape(len(x), self.groups, -1).mean(-1, keepdims=True)
                for m in moments(tuple(range(1, x.ndim - 1)))
            ]
            shape = (len(x), self.groups, channels // self.groups)
            mean, var = (
                jnp.broadcast_to(m, shape).reshape(len(x), channels)
                for m in (examples[0], variance(*examples))
            )
        else:
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
            running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
            if train:
                mean, square = moments(tuple(range(x.ndim - 1)))
                var = variance(mean, square)
                if not self.is_initializing():
                    for running, new in ((running_mean, mean), (running_var, var)):
                        running.value = self.momentum * running.value + (1 - self.momentum) * new
            else:
                mean, var = running_mean.value, running_var.value

        slope = scale * lax.rsqrt(var + self.epsilon)
        start = bias - mean * slope
        slope, start = (
            jnp.tile(v, self.packing).reshape(*v.shape[:-1], *(1,) * (x.ndim - v.ndim), -1)
            for v in (slope, start)
        )
        return x * slope + start
