"""UNet: its fast layers against the textbook ones, shapes, precision, features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from spectral_jax.models import build_model
from spectral_jax.models.unet import UpConvolution, max_pool

pytestmark = pytest.mark.usefixtures("strict_types")

KEY = jax.random.key(0)


def initialise(model, images):
    return jax.jit(model.init)(KEY, images)


def apply(model, variables, images, **options):
    return jax.jit(lambda v, x: model.apply(v, x, **options))(variables, images)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (1, 4, 6, 2, 3)])
def test_max_pool_equals_the_textbook_layer(shape):
    x = jax.random.normal(KEY, shape)
    window = (2,) * (x.ndim - 2)
    weights = jax.random.normal(jax.random.key(1), max_pool(x).shape)

    def textbook(x):
        return nn.max_pool(x, window, window)

    np.testing.assert_array_equal(max_pool(x), textbook(x))
    ours, theirs = (
        jax.jit(jax.grad(lambda x, f=f: jnp.sum(weights * f(x))))(x) for f in (max_pool, textbook)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("d", [2, 3])
def test_up_convolution_equals_the_transposed_convolution(d):
    x = jax.random.normal(KEY, (2, *(3, 4, 2)[:d], 5))
    layer = UpConvolution(6)
    params = layer.init(KEY, x)["params"] | {"bias": jax.random.normal(KEY, (6,))}
    textbook = nn.ConvTranspose(6, (2,) * d, strides=(2,) * d)
    # [in, blocks * out] -> [*blocks, in, out]; linen's kernel runs backwards in space
    kernel = jnp.moveaxis(params["Dense_0"]["kernel"].reshape(5, *(2,) * d, 6), 0, -2)
    kernel = jnp.flip(kernel, axis=range(d))
    np.testing.assert_allclose(
        layer.apply({"params": params}, x),
        textbook.apply({"params": {"kernel": kernel, "bias": params["bias"]}}, x),
        atol=1e-5,
    )


@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("shape", [(2, 17, 30, 3), (1, 5, 8, 7, 1)])
def test_any_size_in_and_out(norm, shape):
    model = build_model("unet", num_classes=3, widths=(4, 8, 8), norm=norm)
    images = jax.random.normal(KEY, shape)
    variables = initialise(model, images)
    logits, features = apply(model, variables, images, train=False, return_features=True)
    assert logits.shape == (*shape[:-1], 3)
    assert set(features) == {"encoder0", "encoder1", "bottleneck", "decoder1", "decoder0"}
    assert bool(jnp.all(jnp.isfinite(logits)))


def test_padding_leaves_divisible_images_alone():
    model = build_model("unet", num_classes=2, widths=(4, 8), norm="group")
    images = jax.random.normal(KEY, (1, 8, 8, 1))
    variables = initialise(model, images)
    padded = jnp.pad(images[:, :7, :7], ((0, 0), (0, 1), (0, 1), (0, 0)), mode="edge")
    np.testing.assert_allclose(
        apply(model, variables, images[:, :7, :7]),
        apply(model, variables, padded)[:, :7, :7],
        atol=1e-6,
    )


def test_bfloat16_computes_close_with_float32_logits_and_parameters():
    images = jax.random.normal(KEY, (2, 16, 16, 1))
    full = build_model("unet", num_classes=3, widths=(8, 16))
    half = build_model("unet", num_classes=3, widths=(8, 16), dtype=jnp.bfloat16)
    variables = initialise(half, images)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, features = apply(half, variables, images, return_features=True)
    assert logits.dtype == jnp.float32
    assert features["bottleneck"].dtype == jnp.bfloat16
    exact = apply(full, variables, images)
    assert float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_batch_statistics_follow_training():
    model = build_model("unet", num_classes=2, widths=(4, 8))
    images = 3 + jax.random.normal(KEY, (4, 8, 8, 1))
    variables = initialise(model, images)
    _, updates = apply(model, variables, images, train=True, mutable=["batch_stats"])
    before, after = (jax.tree.leaves(v["batch_stats"]) for v in (variables, updates))
    assert all(bool(jnp.any(a != b)) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vnet", {}, "choose one of"),
        ("unet", {"width": (4,)}, "did you mean 'widths'"),
        ("unet", {"num_classes": 0}, "2 or more, or 1 with a sigmoid"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **{"num_classes": 2, **options})


def test_wrong_images_and_norms_are_named():
    with pytest.raises(ValueError, match=r"got shape \(8, 8, 1\)"):
        build_model("unet", num_classes=2).init(KEY, jnp.zeros((8, 8, 1)))
    with pytest.raises(ValueError, match="choose one of"):
        build_model("unet", num_classes=2, norm="layer").init(KEY, jnp.zeros((1, 8, 8, 1)))
