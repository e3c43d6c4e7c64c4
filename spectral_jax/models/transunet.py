"""TransUNet (Chen et al., arXiv 2102.04306), equal to its reference implementation to rounding.

A ResNet makes features at 1/16 of the image's size, a Vision Transformer encodes them as tokens,
and a convolutional decoder doubles their size four times, where it sees the ResNet's features of
the same size.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from spectral_jax.models.initializers import kernel_normal
from spectral_jax.models.packing import (
    Kernel,
    Normalisation,
    convolve,
    packing_of,
    repack,
)
from spectral_jax.models.resnet_v2 import ResNetV2
from spectral_jax.models.vit import Encoder, dense_normal, resize_grid

PATCH = 16  # pixels per token along each axis

VIT_B = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "mlp_dim": 3072}
VIT_L = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
VARIANTS: dict[str, dict[str, Any]] = {
    "r50_vit_b16": {"resnet_blocks": (3, 4, 9), **VIT_B},
    "r50_vit_l16": {"resnet_blocks": (3, 4, 9), **VIT_L},
    "vit_b16": {"resnet_blocks": (), **VIT_B},
    "vit_l16": {"resnet_blocks": (), **VIT_L},
}


def upsample(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Bilinear interpolation to twice the size with the corner pixels aligned.

    Of `n` pixels, output `2 i` lies `i / (2 n - 1)` before input `i`, and output `2 i + 1` lies
    `(n - 1 - i) / (2 n - 1)` behind it. On CPU these weighted sums and their gradient are three
    times faster than matrix products or `jax.image.scale_and_translate`.
    """
    for axis in (2, 1):
        outer, n, inner = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        x = x.reshape(math.prod(outer), n, math.prod(inner))
        before = jnp.asarray(np.arange(n)[:, None] / (2 * n - 1), x.dtype)
        behind = before[::-1]
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        even = (1 - before) * x + before * padded[:, :-2]
        odd = (1 - behind) * x + behind * padded[:, 2:]
        x = jnp.stack([even, odd], axis=2).reshape(*outer, 2 * n, *inner)
    return x


def upsample_packed(
    x: Float[Array, "b h packs channels"], packing: int
) -> Float[Array, "b 2*h packs 2*channels"]:
    """`upsample` of an image that is packed: it comes back packed by twice as many pixels."""
    batch, height, packs, packed = x.shape
    width, channels = packs * packing, packed // packing

    def halves(x, size, shape, previous, following):
        before = (np.arange(size) / (2 * size - 1)).reshape(shape)
        behind = (np.arange(size)[::-1] / (2 * size - 1)).reshape(shape)
        if shape[-1] == packing:
            before, behind = (at.repeat(channels, axis=-1) for at in (before, behind))
        before, behind = (jnp.asarray(at, x.dtype) for at in (before, behind))
        return (1 - before) * x + before * previous, (1 - behind) * x + behind * following

    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    rows = halves(x, height, (height, 1, 1), padded[:, :-2], padded[:, 2:])
    x = jnp.stack(rows, axis=2).reshape(batch, 2 * height, packs, packed)

    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    previous = jnp.concatenate([padded[:, :, :-2, -channels:], x[..., :-channels]], axis=-1)
    following = jnp.concatenate([x[..., channels:], padded[:, :, 2:, :channels]], axis=-1)
    even_and_odd = halves(x, width, (packs, packing), previous, following)
    pixels = [jnp.split(half, packing, axis=-1) for half in even_and_odd]
    return jnp.concatenate([half for pair in zip(*pixels, strict=True) for half in pair], axis=-1)


class ConvolutionBlock(nn.Module):
    """`depth` times: convolution of size three, batch normalisation, ReLU.

    Several images are joined along their channels. All are packed alike, and so is the result.
    """

    features: int
    depth: int = 2
    dtype: Any = jnp.float32
    packing: int = 1

    @nn.compact
    def __call__(self, *images, train: bool):
        for i in range(1, self.depth + 1):
            if self.packing > 1:
                inputs = sum(image.shape[-1] for image in images) // self.packing
                kernel = Kernel((3, 3, inputs, self.features), name=f"conv{i}")()
                x = convolve(images, kernel, self.packing)
                norm: nn.Module = Normalisation(self.packing, name=f"norm{i}")
            else:
                x = nn.Conv(
                    self.features,
                    (3, 3),
                    use_bias=False,
                    dtype=self.dtype,
                    kernel_init=kernel_normal,
                    name=f"conv{i}",
                )(jnp.concatenate(images, axis=-1) if len(images) > 1 else images[0])
                norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, name=f"norm{i}")
            x = x.astype(np.promote_types(self.dtype, np.float32))
            x = norm(x, train=train) if self.packing > 1 else norm(x, not train)
            x = nn.relu(x.astype(self.dtype))
            images = (x,)
        return x


class TransUNet(nn.Module):
    """TransUNet of any variant and size.

    Attributes:
      num_classes: number of classes, background included.
      image_size: height and width, or one number for both, that the position embeddings are made
        for; images of other sizes see them interpolated.
      variant: "r50_vit_b16", "r50_vit_l16", or "vit_b16", "vit_l16" without ResNet and skips. It
        stands for the next five sizes, each of which can be given instead.
      resnet_blocks: bottlenecks of the three ResNet stages; empty for no ResNet.
      hidden_size: channels of the tokens.
      num_layers: layers of the encoder.
      num_heads: attention heads of each layer.
      mlp_dim: width of each layer's dense part.
      resnet_width: channels of the ResNet's stem.
      decoder_widths: channels of the decoder's first convolution and of its four blocks.
      dropout_rate: of the embedding and the dense layers; training needs a "dropout" key.
      dtype: of the computation; parameters and logits are float32 all the same. For float64,
        cast the variables too; the logits are float64 then.
      remat: recompute ResNet blocks and encoder layers in the backward pass, to save memory (not
        on CPU, where XLA merges both computations again).
      lanes: decoder blocks with fewer channels than this hold neighbouring pixels side by side: see
        `models.packing`. It changes parameters and logits by nothing but rounding.
    """

    num_classes: int
    image_size: int | Sequence[int] = 224
    variant: str = "r50_vit_b16"
    resnet_blocks: Sequence[int] | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    mlp_dim: int | None = None
    resnet_width: int = 64
    decoder_widths: Sequence[int] = (512, 256, 128, 64, 16)
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    remat: bool = False
    lanes: int = 1

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        *,
        train: bool = False,
        return_features: bool = False,
    ) -> Any:
        """Returns logits `[batch, height, width, num_classes]` in float32.

        Images have one channel or three, and sizes divisible by 16. With `return_features=True` a
        dictionary comes along: `tokens` `[batch, n, hidden_size]` after the encoder's last
        normalisation; the ResNet's `skip0` (coarsest) to `skip2`; the decoder's `bottleneck` and
        `decoder0` (coarsest) to `decoder3`; and of each layer the map `attention0`, ...
        `[batch, heads, n, n]`, whose rows (queries) sum to one.

        Raises:
          ValueError: for images of another shape, or an option out of range.
        """
        if images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise ValueError(
                "images must be [batch, height, width, channels] with 1 or 3 channels, got shape "
                f"{images.shape}"
            )
        if any(size % PATCH for size in images.shape[1:3]):
            raise ValueError(
                f"images of {images.shape[1]} x {images.shape[2]} pixels: TransUNet needs a height "
                f"and width divisible by {PATCH}; resize or pad them"
            )
        options = self._options()

        x = images.astype(self.dtype)
        if images.shape[-1] == 1:
            x = jnp.repeat(x, 3, axis=-1)

        skips, patch = [], PATCH
        if options["resnet_blocks"]:
            resnet = ResNetV2(
                options["resnet_blocks"], self.resnet_width, self.dtype, self.remat, name="resnet"
            )
            *skips, x = resnet(x)
            skips, patch = skips[::-1], 1

        x = nn.Conv(
            options["hidden_size"],
            (patch, patch),
            strides=(patch, patch),
            dtype=self.dtype,
            kernel_init=dense_normal,
            name="embedding",
        )(x)
        positions = self.param(
            "position_embedding",
            nn.initializers.zeros,
            (*options["grid"], options["hidden_size"]),
        )
        if positions.shape != x.shape[1:]:
            positions = resize_grid(positions, *x.shape[1:3])
        grid = x.shape
        tokens = (x + positions.astype(self.dtype)).reshape(grid[0], -1, grid[-1])
        tokens = nn.Dropout(self.dropout_rate, deterministic=not train)(tokens)
        tokens, attention = Encoder(
            options["num_layers"],
            options["num_heads"],
            options["mlp_dim"],
            self.dropout_rate,
            self.dtype,
            self.remat,
            name="encoder",
        )(tokens, train=train)

        features = {"tokens": tokens} | {f"skip{i}": skip for i, skip in enumerate(skips)}
        bottleneck_width, *widths = self.decoder_widths
        bottleneck = ConvolutionBlock(bottleneck_width, 1, self.dtype, name="bottleneck")
        x = features["bottleneck"] = bottleneck(tokens.reshape(grid), train=train)
        packing = 1
        for i, width in enumerate(widths):
            if self.lanes > 1:
                x = upsample_packed(x, packing)
                before, columns = 2 * packing, x.shape[2] * 2 * packing
                packing = packing_of(self.lanes, width, columns)
                x = repack(x, before, packing)
            else:
                x = upsample(x)
            block = ConvolutionBlock(width, 2, self.dtype, packing, name=f"decoder{i}")
            x = block(x, *(repack(skip, 1, packing) for skip in skips[i : i + 1]), train=train)
            features[f"decoder{i}"] = repack(x, packing, 1) if return_features else None
        features |= {f"attention{i}": weights for i, weights in enumerate(attention)}

        x = x.astype(np.promote_types(self.dtype, np.float32))
        if packing > 1:
            shape = (3, 3, x.shape[-1] // packing, self.num_classes)
            kernel, bias = Kernel(shape, True, name="head")()
            logits = repack(convolve([x], kernel, packing) + jnp.tile(bias, packing), packing, 1)
        else:
            logits = nn.Conv(
                self.num_classes, (3, 3), dtype=x.dtype, kernel_init=kernel_normal, name="head"
            )(x)
        return (logits, features) if return_features else logits

    def _options(self) -> dict[str, Any]:
        """The variant's sizes and those given instead, checked, and the positions' `grid`."""
        if self.variant not in VARIANTS:
            raise ValueError(f"variant={self.variant!r}; choose one of {sorted(VARIANTS)}")
        options = {
            name: value if getattr(self, name) is None else getattr(self, name)
            for name, value in VARIANTS[self.variant].items()
        }
        if len(options["resnet_blocks"]) not in (0, 3):
            raise ValueError(
                f"resnet_blocks={options['resnet_blocks']}: a ResNet has three stages, so that "
                f"each token stands for {PATCH} x {PATCH} pixels"
            )
        every_size = [
            *(options["hidden_size"], options["num_layers"], options["num_heads"]),
            *(options["mlp_dim"], self.resnet_width),
            *(*options["resnet_blocks"], *self.decoder_widths),
        ]
        if min(every_size) < 1 or not 0 <= self.dropout_rate < 1:
            raise ValueError(
                f"{options}, resnet_width={self.resnet_width}, decoder_widths="
                f"{self.decoder_widths}, dropout_rate={self.dropout_rate}: sizes have to be at "
                "least 1, and the dropout rate from 0 up to below 1"
            )
        if options["hidden_size"] % options["num_heads"]:
            raise ValueError(
                f"hidden_size={options['hidden_size']} cannot be shared evenly by "
                f"num_heads={options['num_heads']}"
            )
        if len(self.decoder_widths) != 5:
            raise ValueError(
                f"decoder_widths={self.decoder_widths}: give five, for the first convolution and "
                "four blocks"
            )
        size = self.image_size
        sizes = (size, size) if isinstance(size, int) else tuple(size)
        if len(sizes) != 2 or any(size < PATCH or size % PATCH for size in sizes):
            raise ValueError(
                f"image_size={self.image_size}: give one number or a height and a width, each "
                f"divisible by {PATCH}"
            )
        return options | {"grid": tuple(size // PATCH for size in sizes)}
