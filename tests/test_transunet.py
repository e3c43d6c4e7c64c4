"""TransUNet: its layers against definitions, sizes, options, and the reference's own numbers."""

import functools
import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import tiny_networks
from conftest import SHARED
from flax import linen as nn

from spectral_jax.models import build_model, load_imagenet21k, load_transunet_torch
from spectral_jax.models.resnet_v2 import GroupNorm, StdConv, max_pool
from spectral_jax.models.transunet import upsample
from spectral_jax.models.vit import EncoderLayer, resize_grid

KEY = jax.random.key(0)
# compiles small programs five times faster
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
TINY = {"num_classes": 3, "image_size": 32} | tiny_networks.TRANSUNET


def tiny(**options):
    return build_model("transunet", **TINY | options)


def abstract(model, *shape):
    return jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct(shape, jnp.float32))


@functools.cache
def forward(model):
    """Compiled evaluation; returns logits and features."""
    return jax.jit(
        lambda variables, images: model.apply(variables, images, return_features=True),
        compiler_options=QUICK,
    )


def loss(model, variables, images, seed=1):
    """Of a training step; returns the new statistics as well."""
    logits, updates = model.apply(
        variables,
        images,
        train=True,
        rngs={"dropout": jax.random.key(seed)},
        mutable=["batch_stats"],
    )
    return jnp.mean(jnp.square(logits - images)), updates["batch_stats"]


@functools.cache
def gradient(model):
    """Compiled value, statistics and gradient of the loss."""
    return jax.jit(
        jax.value_and_grad(functools.partial(loss, model), has_aux=True), compiler_options=QUICK
    )


@pytest.fixture(scope="module")
def variables():
    """Of the tiny model, with position embeddings and statistics that are not just 0 and 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return jnp.asarray(np.exp(0.1 * rng.standard_normal(leaf.shape)), leaf.dtype)
        fan_in = math.prod(leaf.shape[:-1]) if name == "kernel" else 100
        return jnp.asarray(rng.standard_normal(leaf.shape) / np.sqrt(fan_in), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract(tiny(), 1, 32, 32, 1))


@pytest.fixture(scope="module")
def images():
    return jax.random.uniform(KEY, (2 * 32 * 32,)).reshape(2, 32, 32, 1)


# Layers


@pytest.mark.parametrize("size", [(8, 8), (12, 7)])
def test_max_pool_equals_the_textbook_layer(size):
    x = jnp.asarray(np.random.default_rng(0).permutation(2 * math.prod(size) * 3) * 1.0)
    x = x.astype(jnp.float32).reshape(2, *size, 3)

    def textbook(x):
        return nn.max_pool(x, (3, 3), (2, 2), "VALID")

    np.testing.assert_array_equal(max_pool(x), textbook(x))
    weights = jnp.arange(max_pool(x).size, dtype=jnp.float32).reshape(max_pool(x).shape)
    ours, theirs = (
        jax.grad(lambda x, f=f: jnp.sum(weights * f(x)))(x) for f in (max_pool, textbook)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_upsample_equals_interpolation_at_aligned_corners(size, rng):
    x = rng.standard_normal((2, *size, 3)).astype(np.float32)

    def matrix(n):
        at = np.arange(2 * n) * (n - 1) / (2 * n - 1)  # the definition, in input pixels
        below = np.minimum(np.floor(at), max(n - 2, 0)).astype(int)
        weights = np.zeros((2 * n, n))
        weights[np.arange(2 * n), below] = 1 - (at - below)
        weights[np.arange(2 * n), np.minimum(below + 1, n - 1)] += at - below
        return weights

    rows, columns = (matrix(n) for n in size)
    expected = np.einsum("bhwc,yh,xw->byxc", x, rows, columns)
    np.testing.assert_allclose(upsample(x), expected, atol=1e-6)

    cotangent = rng.standard_normal(expected.shape).astype(np.float32)
    (gradient,) = jax.vjp(upsample, jnp.asarray(x))[1](jnp.asarray(cotangent))
    expected = np.einsum("byxc,yh,xw->bhwc", cotangent, rows, columns)
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_standardised_convolution_equals_numpy(size, stride, rng):
    x = rng.standard_normal((2, 12, 9, 3)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 3, 4)).astype(np.float32)
    standard = (kernel - kernel.mean((0, 1, 2))) / np.sqrt(kernel.var((0, 1, 2)) + 1e-5)
    padding = size // 2
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0))), (size, size), (1, 2)
    )[:, ::stride, ::stride]
    np.testing.assert_allclose(
        StdConv(4, size, stride).apply({"params": {"kernel": kernel}}, x),
        np.einsum("bhwcij,ijco->bhwo", windows, standard),
        atol=1e-4,
    )


@pytest.mark.parametrize("groups", [2, 8])
def test_group_norm_equals_the_textbook_layer(groups, rng):
    x = (100 + rng.standard_normal((2, 6, 5, 8))).astype(np.float32)
    params = {name: rng.standard_normal(8).astype(np.float32) for name in ("scale", "bias")}
    grouped = x.astype(np.float64).reshape(2, 30, groups, -1)
    standard = (grouped - grouped.mean((1, 3), keepdims=True)) / np.sqrt(
        grouped.var((1, 3), keepdims=True) + 1e-6
    )
    expected = standard.reshape(x.shape) * params["scale"] + params["bias"]
    ours = GroupNorm(groups).apply({"params": params}, x)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (32, 32)), ((14, 14), (14, 20)), ((5, 3), (2, 1))]
)
def test_grids_are_resized_as_scipy_zooms(old, new, rng):
    grid = rng.standard_normal((*old, 3)).astype(np.float32)
    zoom = [n / o for n, o in zip(new, old, strict=True)]
    expected = scipy.ndimage.zoom(grid, (*zoom, 1), order=1)
    np.testing.assert_allclose(resize_grid(grid, *new), expected, atol=1e-6)


# Sizes


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"num_classes": 9}, 105_277_081),
        ({"num_classes": 4}, 105_276_356),
        # 24 layers of 12,596,224; 1024 x 1024 + 1024 embedding; 196 x 1024 positions; last norm;
        # the decoder's first kernel is (1024 - 768) x 9 x 512 larger
        (
            {"num_classes": 9, "variant": "r50_vit_l16"},
            11_894_848 + 1_049_600 + 200_704 + 302_311_424 + 7_388_505 + 1_179_648,
        ),
    ],
)
def test_parameters_are_as_many_as_in_the_reference(options, count):
    params = abstract(build_model("transunet", **options), 1, 224, 224, 1)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_weights_for_224_pixels_serve_other_sizes():
    model = build_model("transunet", num_classes=9, image_size=224)
    variables = abstract(model, 1, 224, 224, 3)
    for size in [(512, 512), (224, 320)]:
        images = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
        logits = jax.eval_shape(model.apply, variables, images)
        assert (logits.shape, logits.dtype) == ((1, *size, 9), jnp.float32)


@pytest.mark.parametrize("size", [(32, 32), (16, 48)])
def test_any_size_in_and_out(size, variables):
    images = jax.random.uniform(KEY, (2, *size, 1))
    logits, features = forward(tiny())(variables, images)
    height, width = size
    tokens = height * width // 256
    assert logits.shape == (2, *size, 3)
    assert {name: feature.shape[1:] for name, feature in features.items()} == {
        "tokens": (tokens, 16),
        "skip0": (height // 8, width // 8, 64),
        "skip1": (height // 4, width // 4, 32),
        "skip2": (height // 2, width // 2, 8),
        "bottleneck": (height // 16, width // 16, 8),
        "decoder0": (height // 8, width // 8, 8),
        "decoder1": (height // 4, width // 4, 8),
        "decoder2": (height // 2, width // 2, 8),
        "decoder3": (height, width, 4),
        "attention0": (2, tokens, tokens),
        "attention1": (2, tokens, tokens),
    }
    np.testing.assert_allclose(features["attention1"].sum(-1), 1, atol=1e-6)
    np.testing.assert_array_equal(features["skip1"][:, -1], 0)
    np.testing.assert_array_equal(features["skip1"][:, :, -1], 0)
    assert bool(jnp.any(features["skip1"][:, -2]))


def test_interpolated_positions_are_those_of_a_model_of_that_size(variables):
    images = jax.random.uniform(KEY, (2, 16, 48, 1))
    positions = resize_grid(variables["params"]["position_embedding"], 1, 3)
    resized = variables | {"params": variables["params"] | {"position_embedding": positions}}
    logits, _ = forward(tiny())(variables, images)
    expected, _ = forward(tiny(image_size=(16, 48)))(resized, images)
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_one_channel_is_repeated(variables, images):
    logits, _ = forward(tiny())(variables, images)
    repeated, _ = forward(tiny())(variables, jnp.repeat(images, 3, axis=-1))
    np.testing.assert_array_equal(logits, repeated)


def test_a_transformer_alone_has_no_skips():
    options = TINY | {"variant": "vit_b16", "resnet_blocks": None}
    model = build_model("transunet", **options)
    variables = abstract(model, 1, 32, 32, 1)
    assert variables["params"]["embedding"]["kernel"].shape == (16, 16, 3, 16)
    images = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    logits, features = jax.eval_shape(
        lambda v, x: model.apply(v, x, return_features=True), variables, images
    )
    assert logits.shape == (1, 32, 32, 3)
    assert not any(name.startswith("skip") for name in features)


# Training and precision


def test_dropout_acts_in_training_alone(variables, images):
    value = jax.jit(lambda seed: loss(tiny(), variables, images, seed)[0], compiler_options=QUICK)
    assert value(1) == value(1)
    assert value(1) != value(2)
    forward(tiny())(variables, images)  # asks for no key


def seen_by(model, variables, x, paths, **options):
    """What goes into and comes out of some modules, in a pass with dropout or without."""

    def run(variables, x):
        seen = {}

        def record(call, args, kwargs, context):
            output = call(*args, **kwargs)
            path = "/".join(context.module.path)
            if path in paths and context.method_name == "__call__":
                seen[path] = args[0], jax.tree.leaves(output)[0]
            return output

        with nn.intercept_methods(record):
            found = model.apply(variables, x, **options, rngs={"dropout": KEY}, mutable=True)[0]
        return seen, jax.tree.leaves(found)[0]

    seen, found = jax.jit(run, compiler_options=QUICK)(variables, x)
    return jax.tree.map(np.asarray, seen), np.asarray(found)


def assert_half_is_dropped(before, after):
    kept = after != 0
    assert 0.4 < kept.mean() < 0.6
    np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-3, atol=1e-5)


def test_dropout_is_of_the_embedding(variables, images):
    model = tiny(dropout_rate=0.5)
    tokens = [
        seen_by(model, variables, images, ["encoder"], train=train)[0]["encoder"][0]
        for train in (False, True)
    ]
    assert_half_is_dropped(*tokens)


def test_dropout_is_of_both_dense_layers():
    layer = EncoderLayer(num_heads=2, mlp_dim=64, dropout_rate=0.5)
    tokens = jax.random.normal(KEY, (2, 16, 32))
    variables = layer.init(KEY, tokens, False)
    (still, _), (seen, out) = (
        seen_by(layer, variables, tokens, ["fc2", "mlp_norm"], train=train)
        for train in (False, True)
    )
    assert_half_is_dropped(still["fc2"][0], seen["fc2"][0])  # of what the first one gives
    attended, second = seen["mlp_norm"][0], seen["fc2"][1].reshape(tokens.shape)
    np.testing.assert_array_equal(attended, still["mlp_norm"][0])  # attention has none
    assert_half_is_dropped(second, out - attended)


def test_rematerialisation_changes_memory_alone(variables, images):
    def stored(model):
        """Bytes that the forward pass hands to the backward pass."""
        residuals = jax.eval_shape(
            lambda v: jax.vjp(lambda v: loss(model, v, images)[0], v)[1], variables
        )
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        gradient(tiny())(variables, images),
        gradient(tiny(remat=True))(variables, images),
    )
    assert stored(tiny(remat=True)) < 0.7 * stored(tiny())


def test_initial_values_train(images):
    variables = jax.jit(tiny().init, compiler_options=QUICK)(KEY, images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    values = []
    for _ in range(8):
        (value, statistics), slope = gradient(tiny())(variables, images)
        params = jax.tree.map(lambda p, g: p - 0.05 * g, variables["params"], slope["params"])
        variables = {"params": params, "batch_stats": statistics}
        values.append(float(value))
    assert values[-1] < 0.5 * values[0]


def test_bfloat16_computes_close_with_float32_logits(variables, images):
    logits, features = forward(tiny(dtype=jnp.bfloat16))(variables, images)
    assert logits.dtype == jnp.float32
    assert features["tokens"].dtype == features["skip0"].dtype == jnp.bfloat16
    exact, _ = forward(tiny())(variables, images)
    assert float(jnp.abs(logits - exact).max()) < 0.05 * float(jnp.abs(exact).max())


# Mistakes


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (32, 32, 1), "got shape"),
        ({}, (1, 32, 32, 2), "1 or 3 channels"),
        ({}, (1, 32, 40, 1), "32 x 40 pixels.*divisible by 16"),
        ({"image_size": 100}, (1, 32, 32, 1), "image_size=100"),
        ({"image_size": (32, 32, 32)}, (1, 32, 32, 1), "a height and a width"),
        ({"variant": "r101"}, (1, 32, 32, 1), "choose one of"),
        ({"resnet_blocks": (1, 1)}, (1, 32, 32, 1), "three stages"),
        ({"decoder_widths": (8, 8)}, (1, 32, 32, 1), "give five"),
        ({"num_heads": 3}, (1, 32, 32, 1), "num_heads=3"),
    ],
)
def test_mistakes_are_named(options, shape, message):
    with pytest.raises(ValueError, match=message):
        abstract(tiny(**options), *shape)


# The reference's own numbers


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_reference_is_met(dtype, tmp_path):
    folder = SHARED / "fixtures" / "transunet"
    if not folder.is_dir():
        pytest.skip(f"golden outputs are not part of the repository: no folder {folder}")
    specification = importlib.util.spec_from_file_location("weights", folder / "weights.py")
    weights = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(weights)
    shapes = json.loads((folder / "shapes.json").read_text())
    golden = np.load(folder / "golden.npz")
    images = weights.image("public", (2, 224, 224, 1))
    steps = {"tokens": np.s_[:, ::14, ::16], "logits": np.s_[:, ::8, ::8]}

    def arrays(layout):
        return {
            name: weights.value("public", name, tuple(shape), layout)
            for name, shape in shapes[layout].items()
        }

    empty = abstract(build_model("transunet", num_classes=9), 1, 224, 224, 1)
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), empty)
    path = tmp_path / "R50+ViT-B_16.npz"
    np.savez(path, **arrays("npz"))
    with jax.enable_x64(dtype == "float64"):
        model = build_model("transunet", num_classes=9, dtype=jnp.dtype(dtype))
        for layout, variables in (
            ("state_dict", load_transunet_torch(arrays("state_dict"), empty)),
            ("npz", load_imagenet21k(path, empty)),
        ):
            variables = jax.tree.map(lambda x: x.astype(dtype), variables)
            logits, features = forward(model)(variables, images)
            features["logits"] = logits
            for name in (key.split("/")[1] for key in golden if key.startswith(f"{layout}/")):
                expected = golden[f"{layout}/{name}"].astype(np.float64)
                ours = features[name][steps.get(name, np.s_[:, ::7, ::7, ::8])]
                error = np.linalg.norm(ours - expected) / np.linalg.norm(expected)
                float32_limit = 1e-4 if name == "tokens" else 2e-5
                assert error <= (float32_limit if dtype == "float32" else 1e-6), (layout, name)
