"""Vision Transformer encoder (arXiv 2010.11929) as TransUNet uses it: no class token."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from spectral_jax.models.initializers import kernel_normal
from spectral_jax.models.layers import on_rows

# variance 1 / fan_in: no ReLU follows these layers
dense_normal = partial(kernel_normal, gain=1.0)


def resize_grid(
    grid: Float[Array, "h w c"], height: int, width: int
) -> Float[Array, "{height} {width} c"]:
    """Bilinear interpolation with the corner points aligned.

    The numbers of `scipy.ndimage.zoom(grid, (height / h, width / w, 1), order=1)`, by which
    position embeddings are customarily adapted to another image size.
    """

    def weights(size, new_size):
        at = np.linspace(0, size - 1, new_size)[:, None]
        return jnp.asarray(np.maximum(0, 1 - np.abs(at - np.arange(size))), grid.dtype)

    rows, columns = weights(grid.shape[0], height), weights(grid.shape[1], width)
    return jnp.einsum("hwc,yh,xw->yxc", grid, rows, columns, precision="highest")


class LayerNorm(nn.Module):
    """Normalisation over the last axis, computed in float32 at least."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x.astype(np.promote_types(self.dtype, np.float32))
        x -= x.mean(-1, keepdims=True)
        x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
        return (x * scale.astype(x.dtype) + bias.astype(x.dtype)).astype(self.dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention; returns its attention maps as well."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        hidden_size = x.shape[-1]

        def project(name):
            features = (self.num_heads, hidden_size // self.num_heads)
            dense = nn.DenseGeneral(features, dtype=self.dtype, kernel_init=dense_normal, name=name)
            return on_rows(dense, x).swapaxes(1, 2)  # heads before tokens: faster products

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum(
            "bhqd,bhkd->bhqk",
            query / np.sqrt(query.shape[-1]).astype(query.dtype),
            key,
            preferred_element_type=np.promote_types(self.dtype, np.float32),
        )
        attention = jax.nn.softmax(scores)
        x = jnp.einsum("bhqk,bhkd->bhqd", attention.astype(self.dtype), value)
        out = nn.DenseGeneral(
            hidden_size, axis=(-2, -1), dtype=self.dtype, kernel_init=dense_normal, name="out"
        )
        batch, _, tokens, _ = x.shape
        rows = x.swapaxes(1, 2).reshape(batch * tokens, self.num_heads, -1)
        return out(rows).reshape(batch, tokens, hidden_size), attention


class EncoderLayer(nn.Module):
    """Self-attention, then two dense layers; each reads normalised tokens and adds to them."""

    num_heads: int
    mlp_dim: int
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens, train: bool):
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        dense = partial(nn.Dense, dtype=self.dtype, kernel_init=dense_normal)

        x = LayerNorm(self.dtype, name="attention_norm")(tokens)
        x, attention = SelfAttention(self.num_heads, self.dtype, name="attention")(x)
        tokens = tokens + x

        x = LayerNorm(self.dtype, name="mlp_norm")(tokens)
        x = dropout(nn.gelu(on_rows(dense(self.mlp_dim, name="fc1"), x), approximate=False))
        x = dropout(on_rows(dense(tokens.shape[-1], name="fc2"), x))
        return tokens + x, attention


class Encoder(nn.Module):
    """A stack of `EncoderLayer` and a last normalisation.

    Attributes:
      num_layers: number of layers.
      num_heads: attention heads; they share the channels of the tokens.
      mlp_dim: width of the dense layers.
      dropout_rate: of the dense layers, in training; attention has no dropout.
      dtype: of the computation; attention weights and normalisation are float32 at least.
      remat: recompute each layer in the backward pass instead of storing its inner values.
    """

    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    dropout_rate: float = 0.1
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n hidden"], *, train: bool = False
    ) -> tuple[Float[Array, "b n hidden"], list[Float[Array, "b heads n n"]]]:
        """Returns the encoded tokens and the attention maps of each layer."""
        if tokens.shape[-1] % self.num_heads:
            raise ValueError(
                f"{tokens.shape[-1]} channels do not divide among num_heads={self.num_heads}"
            )
        layer = nn.remat(EncoderLayer, static_argnums=(2,)) if self.remat else EncoderLayer
        attention = []
        for i in range(self.num_layers):
            tokens, weights = layer(
                self.num_heads, self.mlp_dim, self.dropout_rate, self.dtype, name=f"layer{i}"
            )(tokens, train)
            attention.append(weights)
        return LayerNorm(self.dtype, name="norm")(tokens), attention
