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

from spectral_jax.models.initializers import kernel_normal
from spectral_jax.models.layers import larger, on_rows

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
    own `2**d` output pixels.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        blocks = 2 ** (x.ndim - 2)
        dense = nn.Dense(
            blocks * self.features, use_bias=False, dtype=self.dtype, kernel_init=kernel_normal
        )
        x = on_rows(dense, x)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return depth_to_space(x) + bias.astype(self.dtype)


class ConvolutionBlock(nn.Module):
    """Twice: convolution of size three, normalisation, ReLU."""

    features: int
    norm: str = "batch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        for _ in range(2):
            x = nn.Conv(
                self.features,
                (3,) * (x.ndim - 2),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=kernel_normal,
            )(x)
            norm: nn.Module
            if self.norm == "batch":
                norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)
            else:
                groups = self.features if self.norm == "instance" else min(32, self.features)
                norm = nn.GroupNorm(num_groups=groups, epsilon=1e-5)
            x = norm(x.astype(np.promote_types(self.dtype, np.float32)))
            x = nn.relu(x.astype(self.dtype))
        return x


class UNet(nn.Module):
    """UNet of any depth and width; the number of spatial axes is that of the images.

    Attributes:
      num_classes: number of classes, background included.
      widths: channels of each level, finest first; the last is the bottleneck.
      norm: "batch", "group" (up to 32 groups) or "instance".
      dtype: of the computation; parameters and logits are float32 all the same. For float64,
        cast the variables too; the logits are float64 then.
    """

    num_classes: int
    widths: Sequence[int] = (64, 128, 256, 512, 1024)
    norm: str = "batch"
    dtype: Any = jnp.float32

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

        def block(width, name):
            return ConvolutionBlock(width, self.norm, self.dtype, name=name)

        spatial = images.shape[1:-1]
        multiple = 2 ** (len(self.widths) - 1)
        x = images.astype(self.dtype)
        if any(size % multiple for size in spatial):  # else converters to ONNX meet empty borders
            padding = [(0, 0), *((0, -size % multiple) for size in spatial), (0, 0)]
            x = jnp.pad(x, padding, mode="edge")

        features = {}
        for level, width in enumerate(self.widths[:-1]):
            x = features[f"encoder{level}"] = block(width, f"encoder{level}")(x, train=train)
            x = max_pool(x)
        x = features["bottleneck"] = block(self.widths[-1], "bottleneck")(x, train=train)
        for level, width in reversed(list(enumerate(self.widths[:-1]))):
            x = UpConvolution(width, self.dtype, name=f"up{level}")(x)
            x = jnp.concatenate([features[f"encoder{level}"], x], axis=-1)
            x = features[f"decoder{level}"] = block(width, f"decoder{level}")(x, train=train)
        head = nn.Dense(self.num_classes, kernel_init=kernel_normal, name="head")
        logits = on_rows(head, x.astype(np.promote_types(self.dtype, np.float32)))

        logits = logits[(slice(None), *(slice(size) for size in spatial))]
        return (logits, features) if return_features else logits
