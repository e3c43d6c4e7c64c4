"""UNet for 2-D and 3-D images (Ronneberger et al., MICCAI 2015, arXiv 1505.04597).

The encoder halves the image at each level and doubles the channels; the decoder goes back up
and sees the encoder's features of the same size. Convolutions keep the size (zero padding), so
that the output has the size of the input.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from spectral_jax.models import packing
from spectral_jax.models.initializers import kernel_normal
from spectral_jax.models.layers import larger, on_rows
from spectral_jax.models.packing import (
    Kernel,
    Normalisation,
    convolve,
    packing_of,
    repack,
    repeat_kernel,
)

NORMS = ("batch", "group", "instance")


def max_pool(x: Float[Array, "batch *spatial channels"]) -> Float[Array, "batch *half channels"]:
    """Maximum over windows of two along each spatial axis, whose sizes must be even.

    A maximum of strided slices: the values of `nn.max_pool(x, (2, 2), (2, 2))`, while its gradient
    avoids XLA's select-and-scatter, which is slow on CPU. Of equal values the first has the
    gradient, as in PyTorch.
    """
    for axis in range(1, x.ndim - 1):
        even, odd = (
            x[tuple(slice(start, None, 2) if a == axis else slice(None) for a in range(x.ndim))]
            for start in (0, 1)
        )
        x = larger(even, odd)
    return x


def depth_to_space(
    x: Float[Array, "batch *spatial blocks"],
) -> Float[Array, "batch *double channels"]:
    """Moves `2**d` blocks of channels to pixels of a grid twice as fine along `d` spatial axes."""
    batch, *spatial, blocks = x.shape
    d = len(spatial)
    x = x.reshape(batch, *spatial, *(2,) * d, blocks // 2**d)
    interleaved = [axis for i in range(d) for axis in (1 + i, 1 + d + i)]
    x = x.transpose(0, *interleaved, 1 + 2 * d)
    return x.reshape(batch, *(2 * size for size in spatial), blocks // 2**d)


class UpConvolution(nn.Module):
    """Transposed convolution with kernel and stride two, as a dense layer and depth-to-space.

    The windows of such a transposed convolution do not overlap, so each input pixel makes its
    own `2**d` output pixels. With `packing`, of the input and of the output, see `models.packing`.
    """

    features: int
    dtype: Any = jnp.float32
    packing: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x):
        outputs = 2 ** (x.ndim - 2) * self.features
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        if self.packing:
            before, after = self.packing
            kernel = Kernel((x.shape[-1] // before, outputs), name="Dense_0")()
            return packing.upconvolve(x, kernel, bias, before, after)
        dense = nn.Dense(outputs, use_bias=False, dtype=self.dtype, kernel_init=kernel_normal)
        return depth_to_space(on_rows(dense, x)) + bias


class ConvolutionBlock(nn.Module):
    """Twice: convolution of size three, normalisation, ReLU.

    Several images are joined along their channels. All are packed alike, and so is the result.
    """

    features: int
    norm: str = "batch"
    dtype: Any = jnp.float32
    packing: int = 1

    @nn.compact
    def __call__(self, *images, train: bool):
        for i in range(2):
            if self.packing == 1:
                x = nn.Conv(
                    self.features,
                    (3,) * (images[0].ndim - 2),
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=kernel_normal,
                )(jnp.concatenate(images, axis=-1) if len(images) > 1 else images[0])
            else:
                inputs = sum(image.shape[-1] for image in images) // self.packing
                window = (3,) * (images[0].ndim - 2)
                kernel = Kernel((*window, inputs, self.features), name=f"Conv_{i}")()
                x = convolve(images, kernel, self.packing)
            x = x.astype(np.promote_types(self.dtype, np.float32))
            x = nn.relu(self._normalise(x, i, train).astype(self.dtype))
            images = (x,)
        return x

    def _normalise(self, x, i, train):
        groups = self.features if self.norm == "instance" else min(32, self.features)
        if self.packing > 1:
            name = "BatchNorm" if self.norm == "batch" else "GroupNorm"
            groups = 0 if self.norm == "batch" else groups
            return Normalisation(self.packing, groups, name=f"{name}_{i}")(x, train=train)
        if self.norm == "batch":
            return nn.BatchNorm(
                use_running_average=not train, momentum=0.9, epsilon=1e-5, name=f"BatchNorm_{i}"
            )(x)
        return nn.GroupNorm(num_groups=groups, epsilon=1e-5, name=f"GroupNorm_{i}")(x)


class UNet(nn.Module):
    """UNet of any depth and width; the number of spatial axes is that of the images.

    Attributes:
      num_classes: number of classes, background included.
      widths: channels of each level, finest first; the last is the bottleneck.
      norm: "batch", "group" (up to 32 groups) or "instance".
      dtype: of the computation; parameters and logits are float32 all the same. For float64,
        cast the variables too; the logits are float64 then.
      lanes: levels with fewer channels than this hold neighbouring pixels side by side: see
        `models.packing`. It changes parameters and logits by nothing but rounding.
    """

    num_classes: int
    widths: Sequence[int] = (64, 128, 256, 512, 1024)
    norm: str = "batch"
    dtype: Any = jnp.float32
    lanes: int = 1

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch *spatial channels"],
        *,
        train: bool = False,
        return_features: bool = False,
    ) -> Any:
        """Returns logits `[batch, *spatial, num_classes]` in float32, for images of any size.

        Images whose sizes are no multiple of `2 ** (len(widths) - 1)` are padded at their far
        edges by repeating the border, and the logits cropped. With `return_features=True` a
        dictionary comes along: `encoder0` (finest) ..., `bottleneck`, ..., `decoder0`.

        Raises:
          ValueError: if images are neither 2-D nor 3-D, or an option is out of range.
        """
        if images.ndim not in (4, 5):
            raise ValueError(
                "images must be [batch, height, width, channels] or [batch, depth, height, width, "
                f"channels], got shape {images.shape}"
            )
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}; choose one of {NORMS}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(
                f"widths={self.widths}; a UNet needs at least one level, each of at least 1 channel"
            )

        spatial = images.shape[1:-1]
        multiple = 2 ** (len(self.widths) - 1)
        x = images.astype(self.dtype)
        if any(size % multiple for size in spatial):  # else converters to ONNX meet empty borders
            padding = [(0, 0), *((0, -size % multiple) for size in spatial), (0, 0)]
            x = jnp.pad(x, padding, mode="edge")
        packs = [
            packing_of(self.lanes, width, x.shape[-2] // 2**level)
            for level, width in enumerate(self.widths)
        ]

        def block(level, name, *images):
            module = ConvolutionBlock(
                self.widths[level], self.norm, self.dtype, packs[level], name=name
            )
            x = module(*images, train=train)
            features[name] = repack(x, packs[level], 1) if return_features else None
            return x

        features: dict[str, Any] = {}
        skips = []
        x = repack(x, 1, packs[0])
        for level in range(len(self.widths) - 1):
            x = block(level, f"encoder{level}", x)
            skips.append(x)
            x = max_pool(x) if self.lanes == 1 else packing.max_pool(x, packs[level])
            x = repack(x, max(1, packs[level] // 2), packs[level + 1])
        x = block(-1, "bottleneck", x)
        for level in reversed(range(len(self.widths) - 1)):
            before = packs[level + 1] if packs[level] > 1 else 1
            after = 2 * before if packs[level] > 1 else 1
            x = repack(x, packs[level + 1], before)
            sizes = None if self.lanes == 1 else (before, after)
            x = UpConvolution(self.widths[level], self.dtype, sizes, name=f"up{level}")(x)
            x = block(level, f"decoder{level}", skips[level], repack(x, after, packs[level]))
        x = x.astype(np.promote_types(self.dtype, np.float32))
        if packs[0] > 1:
            kernel, bias = Kernel((self.widths[0], self.num_classes), True, name="head")()
            x = x @ repeat_kernel(kernel, packs[0]) + jnp.tile(bias, packs[0])
            logits = repack(x, packs[0], 1)
        else:
            head = nn.Dense(self.num_classes, kernel_init=kernel_normal, name="head")
            logits = on_rows(head, x)

        logits = logits[(slice(None), *(slice(size) for size in spatial))]
        return (logits, features) if return_features else logits
