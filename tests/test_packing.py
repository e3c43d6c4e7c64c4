"""Pixels side by side: the same networks, gradients and statistics, with other arrays inside."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.models import build_model
from spectral_jax.models.packing import packing_of, repack

UNET = partial(build_model, "unet", num_classes=3)
TRANSUNET = partial(
    build_model, "transunet", num_classes=3, image_size=32, resnet_blocks=(1, 1, 1), resnet_width=4,
    hidden_size=8, num_layers=1, num_heads=2, mlp_dim=8, decoder_widths=(16, 16, 8, 8, 4),
    dropout_rate=0.0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(
    ("make", "shape", "options"),
    [
        (UNET, (2, 12, 22, 1), {"widths": (8, 16, 24)}),  # 4, 2 and 1 side by side
        (UNET, (2, 8, 8, 8, 1), {"widths": (4, 16), "norm": "instance"}),
        (TRANSUNET, (2, 32, 48, 1), {}),
    ],
)
def test_packing_changes_nothing_but_rounding(make, shape, options):
    images = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    plain, packed = (make(dtype=jnp.float64, lanes=lanes, **options) for lanes in (1, 32))
    variables, same = (jax.jit(m.init)(jax.random.key(1), images) for m in (plain, packed))
    assert jax.tree.structure(variables) == jax.tree.structure(same)
    assert all(map(np.array_equal, jax.tree.leaves(variables), jax.tree.leaves(same)))
    variables = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), variables
    )
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])

    def in_training(model):
        """Gradients, logits and running statistics."""

        def loss(params):
            logits, updates = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(logits)), (logits, updates)

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    def in_use(model):
        return jax.jit(partial(model.apply, return_features=True))(variables, images)

    for form in (in_training, in_use):
        ours, theirs = (jax.tree_util.tree_leaves_with_path(form(m)) for m in (packed, plain))
        assert [path for path, _ in ours] == [path for path, _ in theirs]
        for (path, x), (_, y) in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-9 * max(1, np.abs(y).max()), err_msg=str(path))


def test_as_many_pixels_as_fit():
    assert [packing_of(128, channels, 224) for channels in (16, 64, 100, 128, 512)] == [
        8,
        2,
        1,
        1,
        1,
    ]
    assert packing_of(128, 8, 28) == 4
    assert packing_of(1, 8, 28) == 1
    image = jnp.arange(24.0).reshape(1, 2, 4, 3)
    np.testing.assert_array_equal(repack(image, 1, 2)[0, 0, 1], np.arange(6.0, 12))
