"""How networks are compiled: options by backend, and dense layers on rows."""

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from spectral_jax.models.compilation import compiler_options
from spectral_jax.models.layers import on_rows


@pytest.fixture(autouse=True)
def _forget_options():
    compiler_options.cache_clear()
    yield
    compiler_options.cache_clear()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="options of the CPU's compiler")
def test_convolutions_are_not_handed_to_ynnpack_and_products_are():
    options = compiler_options()
    assert options

    def program(function, *arguments):
        return jax.jit(function, compiler_options=options).lower(*arguments).compile().as_text()

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    assert "__ynn_fusion" not in program(convolve, jnp.ones((1, 32, 32, 8)), jnp.ones((3, 3, 8, 8)))
    assert "__ynn_fusion" in program(jnp.matmul, jnp.ones((256, 256)), jnp.ones((256, 256)))


def test_other_backends_get_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler_options() == {}


def test_a_compiler_without_the_option_gets_none(monkeypatch):
    class Unknown:
        def lower(self):
            return self

        def compile(self, compiler_options):
            raise jax.errors.JaxRuntimeError(f"No such compile option: {compiler_options}")

    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(jax, "jit", lambda _: Unknown())
    assert compiler_options() == {}


def test_dense_layers_on_rows_are_the_same_layers():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    layer = nn.DenseGeneral((2, 6))
    variables = layer.init(jax.random.key(1), x)

    def loss(apply, variables):
        return jnp.sum(jnp.sin(apply(lambda x: layer.apply(variables, x), x)))

    assert on_rows(lambda x: layer.apply(variables, x), x).shape == (2, 3, 5, 2, 6)
    plain = jax.value_and_grad(lambda v: loss(lambda dense, x: dense(x), v))(variables)
    rows = jax.value_and_grad(lambda v: loss(on_rows, v))(variables)
    chex.assert_trees_all_close(rows, plain, rtol=1e-5, atol=1e-6)
