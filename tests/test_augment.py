"""Augmentation on the device: label-safe, exact without interpolation, by a key of its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.data import augment as module
from spectral_jax.data.augment import augment, to_unit_range

KEY = jax.random.key(0)
NOTHING = {
    "flip": False,
    "quarter_turns": False,
    "affine_probability": 0.0,
    "contrast": 0.0,
    "brightness": 0.0,
    "gamma": 0.0,
}


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (12, 16, 16)).astype(np.uint8)
    images = np.stack([labels / 4, rng.random(labels.shape)], axis=-1).astype(np.float32)
    return jnp.asarray(images), jnp.asarray(labels)


def test_nothing_changes_when_everything_is_off(examples):
    images, labels = jax.jit(partial(augment, **NOTHING))(KEY, *examples)
    np.testing.assert_allclose(images, examples[0], atol=1e-6)
    np.testing.assert_array_equal(labels, examples[1])
    assert labels.dtype == jnp.uint8


def test_flips_and_turns_are_the_eight_symmetries_of_the_square(examples):
    options = NOTHING | {"flip": True, "quarter_turns": True}
    images, labels = jax.jit(partial(augment, **options))(KEY, *examples)
    seen = set()
    for before, image, label in zip(examples[1], images, labels, strict=True):
        symmetries = [np.rot90(x, k) for x in (before, before.T) for k in range(4)]
        matching = [i for i, s in enumerate(symmetries) if np.array_equal(s, label)]
        assert len(matching) == 1
        seen |= set(matching)
        np.testing.assert_allclose(image[..., 0], label / 4, atol=1e-5)  # image and mask together
    assert len(seen) > 3


def test_labels_stay_labels_and_follow_the_image():
    label = jnp.zeros((6, 32, 32), jnp.uint8).at[:, 8:20, 10:26].set(3)
    image = (label / 3)[..., None].astype(jnp.float32)
    options = NOTHING | {"affine_probability": 1.0, "rotation_degrees": 30.0, "scale": 0.2}
    images, labels = jax.jit(partial(augment, **options))(KEY, image, label)
    assert set(np.unique(labels)) <= {0, 3}
    assert np.any(labels != label)
    agreement = (np.asarray(images[..., 0] > 0.5) == (np.asarray(labels) > 0)).mean()
    assert agreement > 0.97


def test_objects_grow_and_shrink_by_at_most_the_scale():
    label = jnp.zeros((40, 64, 64), jnp.uint8).at[:, 24:40, 24:40].set(1)
    options = NOTHING | {"affine_probability": 1.0, "rotation_degrees": 0.0, "shift": 0.0}
    image = label[..., None].astype(jnp.float32)
    _, labels = jax.jit(partial(augment, **options, scale=0.5))(KEY, image, label)
    sides = np.sqrt(np.asarray(labels).sum((1, 2)))
    # 16 pixels, between 1 / 1.5 and 1 / 0.5 times as long, give or take a pixel
    assert 16 / 1.5 - 1 <= sides.min() < 13
    assert 24 < sides.max() <= 16 / 0.5 + 1


def test_intensity_stays_in_range_and_moves(examples):
    options = {k: v for k, v in NOTHING.items() if k not in ("contrast", "brightness", "gamma")}
    images, labels = jax.jit(partial(augment, **options, noise=0.1))(KEY, *examples)
    np.testing.assert_array_equal(labels, examples[1])
    assert bool(jnp.all(jnp.isfinite(images)))
    assert 0.01 < float(jnp.abs(images - examples[0]).mean()) < 0.3


@pytest.mark.parametrize("size", [16, 33])
def test_an_example_depends_on_its_place_in_the_batch_and_the_key_alone(size):
    rng = np.random.default_rng(0)
    images = rng.random((8, size, size, 2)).astype(np.float32)
    labels = rng.integers(0, 4, images.shape[:-1]).astype(np.uint8)
    whole = jax.jit(augment)(KEY, images, labels)
    for devices in (2, 4, 8):
        mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        split = jax.NamedSharding(mesh, jax.P("data"))
        parts = jax.jit(augment)(KEY, *(jax.device_put(x, split) for x in (images, labels)))
        for ours, theirs in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    other = jax.jit(augment)(jax.random.key(1), images, labels)
    assert np.any(other[0] != whole[0])


def test_slices_of_a_patch_change_alike(examples):
    images, labels = (jnp.stack([x[:4]] * 3, axis=1) for x in examples)
    images, labels = jax.jit(augment)(KEY, images, labels)
    assert images.shape == (4, 3, 16, 16, 2)
    flat_images, flat_labels = jax.jit(augment)(KEY, *(x[:4] for x in examples))
    for depth in range(3):
        np.testing.assert_array_equal(labels[:, depth], flat_labels)
        np.testing.assert_allclose(images[:, depth], flat_images, atol=1e-6)


EINSUM = jnp.einsum


def three_part_einsum(equation, a, b, precision):
    """What a TPU's matrix unit makes of a float32 product of this precision."""

    def parts(x):
        high = x.astype(jnp.bfloat16).astype(jnp.float32)
        return high, (x - high).astype(jnp.bfloat16).astype(jnp.float32)

    (a_high, a_low), (b_high, b_low) = parts(a), parts(b)
    product = EINSUM(equation, a_high, b_high)
    if precision == "high":
        product += EINSUM(equation, a_high, b_low) + EINSUM(equation, a_low, b_high)
    return product


@pytest.mark.parametrize("rounding", ["float32", "as a TPU"])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6, 48, 48, 2), {}),
        ((4, 33, 33, 1), {"affine_probability": 1.0}),
        ((2, 24, 40, 1), {"quarter_turns": False, "affine_probability": 1.0}),
        ((2, 3, 20, 20, 2), {}),
        ((4, 36, 36, 1), {"rotation_degrees": 180.0, "scale": 0.5, "shift": 0.3}),
        ((2, 8, 8, 1), {}),
    ],
)
def test_products_find_the_same_pixels_as_looking_up(monkeypatch, rounding, shape, options):
    rng = np.random.default_rng(0)
    images = rng.random(shape).astype(np.float32)
    labels = rng.integers(0, 256, shape[:-1]).astype(np.uint8)
    looked_up = jax.jit(partial(augment, **options))(KEY, images, labels)
    if rounding == "as a TPU":
        monkeypatch.setattr(module.jnp, "einsum", three_part_einsum)
    monkeypatch.setattr(module, "look_up", module.look_up_by_products)
    products = jax.jit(partial(augment, **options))(KEY, images, labels)
    atol = 1e-6 if rounding == "float32" else 3e-5
    np.testing.assert_allclose(products[0], looked_up[0], atol=atol)
    np.testing.assert_array_equal(products[1], looked_up[1])
    assert products[1].dtype == jnp.uint8


def test_labels_of_two_bytes_keep_their_numbers(monkeypatch):
    label = jnp.arange(32 * 32).reshape(1, 32, 32).astype(jnp.uint16) * 60
    image = jnp.zeros((1, 32, 32, 1))
    looked_up = jax.jit(partial(augment))(KEY, image, label)[1]
    monkeypatch.setattr(module.jnp, "einsum", three_part_einsum)
    monkeypatch.setattr(module, "look_up", module.look_up_by_products)
    np.testing.assert_array_equal(jax.jit(partial(augment))(KEY, image, label)[1], looked_up)


def test_a_tpu_gets_products_and_others_look_up():
    image, label = jnp.zeros((2, 32, 32, 1)), jnp.zeros((2, 32, 32), jnp.uint8)

    def lowered(platform):
        traced = jax.jit(partial(augment, contrast=0.0)).trace(KEY, image, label)
        return traced.lower(lowering_platforms=(platform,)).as_text()

    for platform, gathers in (("tpu", False), ("cpu", True), ("cuda", True)):
        assert ("stablehlo.gather" in lowered(platform)) == gathers, platform


def test_turning_an_oblong_is_refused():
    with pytest.raises(ValueError, match="square"):
        augment(KEY, jnp.zeros((1, 8, 9, 1)), jnp.zeros((1, 8, 9), int))


def test_integers_become_the_unit_range():
    assert float(to_unit_range(jnp.array([255], jnp.uint8))[0]) == 1
    assert float(to_unit_range(jnp.array([65535], jnp.uint16))[0]) == 1
    assert float(to_unit_range(jnp.array([0.5]))[0]) == 0.5
