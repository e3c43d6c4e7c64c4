import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from spectral_jax.models import convolution as module
from spectral_jax.models.convolution import DIMENSIONS, convolution, split_evenly


@pytest.fixture(params=[(64, 1), (1, 10), (1, 120)], ids=["bytes", "rows", "images"])
def parts(request, monkeypatch):
    """Parts of some rows, of the least size, and of several images."""
    size, pixels = request.param
    monkeypatch.setattr(module, "PART_BYTES", size)
    monkeypatch.setattr(module, "PART_PIXELS", pixels)


@pytest.mark.usefixtures("parts")
def test_gradients_are_those_of_lax():
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 7, 5, 2))
    kernel = jax.random.normal(keys[1], (3, 3, 2, 4))
    g = jax.random.normal(keys[2], (3, 7, 5, 4))

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)

    expected, pull_back = jax.vjp(plain, x, kernel)
    value, ours = jax.vjp(convolution, x, kernel)
    np.testing.assert_array_equal(value, expected)
    for gradient, reference in zip(ours(g), pull_back(g), strict=True):
        np.testing.assert_allclose(gradient, reference, rtol=1e-5, atol=1e-5)


def test_half_precision_is_summed_in_float32():
    x = jnp.ones((1, 80, 80, 1), jnp.bfloat16)
    kernel = jnp.zeros((3, 3, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda kernel: convolution(x, kernel).sum().astype(jnp.float32))(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert gradient[1, 1, 0, 0] == 6400  # bfloat16 itself would stop at 256


def test_split_evenly():
    assert split_evenly(10, 4) == (4, 3)
    assert split_evenly(10, 5) == (5, 2)
    assert split_evenly(7, 100) == (7, 1)
    assert split_evenly(3, 0) == (1, 3)
