"""Parameters of one network for another: what is taken over, what a rule fits, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrained import TINY

from spectral_jax.models import build_model
from spectral_jax.models.transfer import transfer
from spectral_jax.models.vit import resize_grid


def random_variables(name, channels, seed, size=32, **options):
    """A network, and variables of it that are all random."""
    model = build_model(name, **options)
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    draw = np.random.default_rng(seed)
    return model, jax.tree.map(lambda x: draw.uniform(0.1, 1, x.shape).astype(x.dtype), shapes)


def unet(channels, seed, classes=3, widths=(4, 8)):
    return random_variables("unet", channels, seed, num_classes=classes, widths=widths)


def same(ours, theirs, path):
    part, *rest = path.split("/")
    return same(ours[part], theirs[part], "/".join(rest)) if rest else (ours[part] == theirs[part])


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        (3, 1, "3 channels averaged to 1"),
        (1, 3, "1 channel repeated to 3"),
        (4, 3, "4 channels averaged to 3"),
    ],
)
def test_the_same_image_in_every_channel_gives_the_same_logits(before, after, rule):
    there, theirs = unet(before, seed=1)
    here, ours = unet(after, seed=2)
    loaded = transfer(theirs, ours, "unet")
    assert loaded.fitted == {"params/encoder0/Conv_0/kernel": rule}
    assert loaded.new == loaded.unused == ()
    assert len(loaded.loaded) + 1 == len(jax.tree.leaves(ours))
    grey = np.random.default_rng(0).random((1, 32, 32, 1), np.float32)
    logits = [
        model.apply(variables, np.repeat(grey, channels, axis=-1), train=False)
        for model, variables, channels in (
            (there, theirs, before),
            (here, loaded.variables, after),
        )
    ]
    np.testing.assert_allclose(logits[0], logits[1], rtol=1e-4)


@pytest.mark.parametrize(
    ("part", "new_head", "new"),
    [
        ("all", False, set()),
        ("all", True, {"head"}),
        ("encoder", False, {"decoder0", "head", "up0"}),
    ],
)
def test_parts_of_a_unet(part, new_head, new):
    _, theirs = unet(1, seed=1, classes=2 if new_head else 3)
    _, ours = unet(1, seed=2)
    loaded = transfer(theirs, ours, "unet", part=part, new_head=new_head)
    assert {path.split("/")[1] for path in loaded.new} == new
    assert {path.split("/")[0] for path in loaded.loaded} == {"params", "batch_stats"}
    for path in loaded.loaded:
        assert same(loaded.variables, theirs, path).all()
    for path in loaded.new:
        assert same(loaded.variables, ours, path).all()


@pytest.mark.parametrize("part", ["all", "encoder"])
def test_a_transunet_for_larger_images_and_other_classes(part):
    _, theirs = random_variables("transunet", 1, 1, 64, **TINY)
    options = TINY | {"num_classes": 5, "image_size": 96}
    if part == "encoder":  # whose decoder may be another
        options |= {"decoder_widths": (3, 3, 3, 3, 3)}
    here, ours = random_variables("transunet", 1, 2, 96, **options)
    loaded = transfer(theirs, ours, "transunet", part=part, new_head=True)
    path = "params/position_embedding"
    assert loaded.fitted == {path: "grid of 4 x 4 interpolated to 6 x 6"}
    np.testing.assert_allclose(
        loaded.variables["params"]["position_embedding"],
        resize_grid(jnp.asarray(theirs["params"]["position_embedding"]), 6, 6),
    )
    new = {path.split("/")[1] for path in loaded.new}
    decoder = {"bottleneck", "decoder0", "decoder1", "decoder2", "decoder3"}
    assert new == {"head"} | (decoder if part == "encoder" else set())
    assert same(loaded.variables, theirs, "params/resnet/conv_root/kernel").all()
    logits = here.apply(loaded.variables, np.ones((1, 96, 96, 1), np.float32), train=False)
    assert logits.shape == (1, 96, 96, 5)


def test_another_network_is_refused_with_all_that_differs():
    _, theirs = unet(1, seed=1, widths=(4, 8, 16))
    _, ours = unet(1, seed=2, widths=(6, 8))
    with pytest.raises(ValueError, match="of another shape") as error:
        transfer(theirs, ours, "unet")
    message = str(error.value)
    assert "params/encoder0/Conv_0/kernel is (3, 3, 1, 4) there, (3, 3, 1, 6) here" in message
    assert "without a place: batch_stats/decoder1" in message
    with pytest.raises(ValueError, match=r"missing: .*params/encoder1/Conv_0/kernel"):
        transfer(ours, theirs, "unet")
