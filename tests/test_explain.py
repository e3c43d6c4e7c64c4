"""Maps: against hand computations, on a network with a planted feature, and from end to end."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_networks
from fake_split import make_split
from flax import linen as nn

from spectral_jax.data.sources import DatasetInfo, Split, Volume
from spectral_jax.evaluation.explain import (
    attention_rollout,
    auc,
    class_activation_map,
    energy_inside,
    insertion_deletion,
    measure_explanations,
    pointing_game,
    randomised,
    rollout_map,
    to_image,
)
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.metrics.ranking import rank_correlation
from spectral_jax.models import build_model
from spectral_jax.models.unet import ConvolutionBlock, UpConvolution
from spectral_jax.training.config import parse_config

KEY = jax.random.key(0)
SIZE = 32
SQUARE = np.zeros((SIZE, SIZE), bool)
SQUARE[8:24, 12:28] = True


class Channels(nn.Module):
    """Bright and dark: two channels of the means of 2 x 2 pixels."""

    @nn.compact
    def __call__(self, images):
        means = images.reshape(len(images), SIZE // 2, 2, SIZE // 2, 2, 1).mean((2, 4))
        return nn.relu(nn.Dense(2, name="dense")(means))


class Planted(nn.Module):
    """A linear head on a feature whose channel 0 is bright pixels and drives class 1."""

    @nn.compact
    def __call__(self, images, *, train=False, return_features=False):
        feature = Channels(name="feature")(images)
        logits = nn.Dense(2, name="head")(feature).repeat(2, axis=1).repeat(2, axis=2)
        return (logits, {"feature": feature}) if return_features else logits


PLANTED = {
    "params": {
        # bright: x - 0.5; dark: 0.5 - x
        "feature": {"dense": {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([-0.5, 0.5])}},
        "head": {"kernel": jnp.array([[-20.0, 20.0], [20.0, -20.0]]), "bias": jnp.zeros(2)},
    }
}


def square_image(inside=1.0, outside=0.0):
    return np.where(SQUARE, inside, outside).astype(np.float32)[..., None]


def planted_map(method, feature="feature", images=None):
    images = square_image()[None] if images is None else images
    region = jnp.asarray(np.broadcast_to(SQUARE, images.shape[:3]))
    return class_activation_map(
        Planted(), PLANTED, jnp.asarray(images), feature=feature, class_index=1, region=region,
        method=method,
    )  # fmt: skip


@functools.cache
def network(name):
    """An untrained network with random statistics, its variables, and images."""
    options = {
        "unet": tiny_networks.UNET,
        "transunet": {"image_size": SIZE} | tiny_networks.TRANSUNET,
    }[name]
    model = build_model(name, num_classes=3, **options)
    images = jax.random.uniform(KEY, (2, SIZE, SIZE, 1))
    return model, jax.jit(model.init)(KEY, images), images


@pytest.mark.parametrize("method", ["seg_grad_cam", "layer_cam"])
def test_a_planted_feature_is_found(method):
    found = np.asarray(planted_map(method))[0]
    assert found.shape == (SIZE, SIZE)
    assert found.max() == pytest.approx(1)
    assert found.min() >= 0
    assert energy_inside(found, SQUARE) > 0.9
    assert pointing_game(found, SQUARE) == 1


def test_maps_of_a_linear_head_equal_the_hand_computation(rng):
    images = rng.uniform(size=(2, SIZE, SIZE, 1)).astype(np.float32)
    means = images.reshape(2, 16, 2, 16, 2).mean((2, 4))
    features = np.stack([np.maximum(0, means - 0.5), np.maximum(0, 0.5 - means)], -1)
    inside = SQUARE.reshape(16, 2, 16, 2).sum((1, 3))  # pixels that each feature decides
    gradient = inside[..., None] * np.array([20.0, -20.0])
    expected = {
        "seg_grad_cam": (features * gradient.mean((0, 1))).sum(-1),
        "layer_cam": (features * np.maximum(0, gradient)).sum(-1),
    }
    for method, small in expected.items():
        large = jax.image.resize(np.maximum(0, small), (2, SIZE, SIZE), "linear")
        large = np.asarray(large / large.max((1, 2), keepdims=True))
        np.testing.assert_allclose(planted_map(method, images=images), large, atol=1e-5)


def test_no_evidence_is_zero_everywhere():
    dark = np.zeros((1, SIZE, SIZE, 1), np.float32)
    found = np.asarray(planted_map("layer_cam", images=dark))
    np.testing.assert_array_equal(found, 0)
    assert np.isnan(energy_inside(found[0], SQUARE))
    assert np.isnan(pointing_game(found[0], SQUARE))


def test_the_map_of_a_bottleneck_equals_that_of_the_decoder_alone():
    model, variables, images = network("unet")
    region = jnp.asarray(np.broadcast_to(SQUARE, images.shape[:3]))
    _, features = model.apply(variables, images, train=False, return_features=True)

    def score(x, class_index):
        def apply(layer, name, x):
            own = {kind: of[name] for kind, of in variables.items() if name in of}
            return layer.apply(own, x, **({"train": False} if "coder" in name else {}))

        for level, width in ((1, 8), (0, 4)):
            x = apply(UpConvolution(width), f"up{level}", x)
            x = jnp.concatenate([features[f"encoder{level}"], x], axis=-1)
            x = apply(ConvolutionBlock(width), f"decoder{level}", x)
        logits = apply(nn.Dense(3), "head", x)
        return (logits[..., class_index] * region).sum()

    gradient = jax.jit(jax.grad(score))
    marked = 0
    for class_index in range(3):
        slope = gradient(features["bottleneck"], class_index).mean((1, 2), keepdims=True)
        small = nn.relu((slope * features["bottleneck"]).sum(-1))
        expected = jax.image.resize(small, images.shape[:3], "linear")
        expected /= jnp.maximum(1e-12, expected.max((1, 2), keepdims=True))
        found = class_activation_map(
            model, variables, images, feature="bottleneck", class_index=class_index, region=region
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)
        marked += int((found.max((1, 2)) > 0).sum())
    assert marked > 0


@pytest.mark.parametrize("feature", ["tokens", "skip1", "decoder3"])
def test_features_of_transunet_have_maps(feature):
    model, variables, images = network("transunet")
    region = jnp.ones(images.shape[:3], bool)
    found = class_activation_map(
        model, variables, images, feature=feature, class_index=1, region=region, method="layer_cam"
    )
    assert found.shape == images.shape[:3]
    np.testing.assert_allclose(found.max((1, 2)), 1, atol=1e-6)
    assert float(found.min()) >= 0


def test_a_map_of_an_odd_size_lies_where_the_feature_does():
    """Zero padding at the far edge is cropped, not squeezed into the image."""
    model = build_model("unet", num_classes=2, widths=(4, 4, 4))
    images = jnp.zeros((1, 17, 17, 1))
    variables = model.init(KEY, images)
    found = class_activation_map(
        model, variables, images, feature="encoder0", class_index=1, region=images[..., 0] == 0
    )
    assert found.shape == (1, 17, 17)
    # features of 5 x 5, each of 4 x 4 pixels of the padded image
    small = np.zeros((1, 5, 5), np.float32)
    small[0, 1, 2] = 1
    peak = np.argwhere(np.asarray(to_image(jnp.asarray(small), (1, 17, 17, 1)))[0] > 0.7)
    np.testing.assert_array_equal(peak.mean(0), [5.5, 9.5])


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'feature'"):
        planted_map("layer_cam", feature="features")
    with pytest.raises(ValueError, match="choose one of"):
        planted_map("grad_cam")
    model, variables, images = network("transunet")
    with pytest.raises(ValueError, match=r"tokens.*decoder3") as raised:
        class_activation_map(
            model, variables, images, feature="attention0", class_index=1, region=images[..., 0] > 0
        )
    assert "attention1" not in str(raised.value)


def test_rollout_rows_sum_to_one_and_identity_gives_identity(rng):
    attention = [jax.nn.softmax(jnp.asarray(rng.standard_normal((2, 3, 16, 16)))) for _ in range(4)]
    rollout = attention_rollout(attention)
    np.testing.assert_allclose(rollout.sum(-1), 1, atol=1e-6)
    first, second = ((np.asarray(a).mean(1) + np.eye(16)) / 2 for a in attention[:2])
    np.testing.assert_allclose(attention_rollout(attention[:2]), second @ first, atol=1e-6)
    eye = jnp.broadcast_to(jnp.eye(16), (2, 3, 16, 16))
    np.testing.assert_array_equal(attention_rollout([eye] * 3)[0], np.eye(16))
    region = np.zeros((1, 16, 16), bool)
    region[0, 4:8, 8:12] = True  # the token in row 1, column 2 of 4
    found = np.asarray(rollout_map(jnp.eye(16)[None], jnp.asarray(region)))[0]
    assert energy_inside(found, region[0]) > 0.5
    assert pointing_game(found, region[0]) == 1


def test_the_right_order_shows_early_and_hides_early():
    image = square_image(inside=0.6, outside=0.0)
    right = SQUARE.astype(np.float32)
    curves = {
        name: insertion_deletion(Planted(), PLANTED, image, found, class_index=1, mask=SQUARE)
        for name, found in (("right", right), ("wrong", 1 - right))
    }
    inserted, deleted = curves["right"]
    assert inserted.shape == deleted.shape == (11,)
    assert inserted[0] == pytest.approx(deleted[-1], abs=1e-6)  # all of it blurred
    assert inserted[-1] == pytest.approx(deleted[0], abs=1e-6)  # as it is
    assert inserted[-1] > 0.95
    assert auc(inserted) > auc(curves["wrong"][0]) + 0.01
    assert auc(deleted) < auc(curves["wrong"][1]) - 0.01
    # a quarter of the pixels is the square: shown with 3 of 10 steps, and nothing else matters
    np.testing.assert_allclose(inserted[3:], inserted[-1], atol=1e-6)


def test_randomising_the_weights_changes_the_map(rng):
    # of both signs, so that random weights see something, whatever their sign
    images = rng.uniform(-1, 1, size=(1, SIZE, SIZE, 1)).astype(np.float32)
    region = jnp.asarray(SQUARE[None])

    def explain(variables):
        found = class_activation_map(
            Planted(), variables, jnp.asarray(images), feature="feature", class_index=1,
            region=region, method="layer_cam",
        )  # fmt: skip
        return np.asarray(found[0])

    cascades = [list(randomised(Planted(), PLANTED, images, seed)) for seed in range(8)]
    assert [layer for layer, _ in cascades[0]] == ["head", "feature"]
    _, head = cascades[0][0]
    assert head["params"]["feature"] is PLANTED["params"]["feature"]
    assert not np.array_equal(head["params"]["head"]["kernel"], PLANTED["params"]["head"]["kernel"])
    learnt = explain(PLANTED)
    assert rank_correlation(learnt, explain(PLANTED))["spearman"] == pytest.approx(1)
    correlations = [
        rank_correlation(learnt, explain(cascade[-1][1]))["spearman"] for cascade in cascades
    ]
    assert np.nanmean(correlations) < 0.8


def test_layers_are_randomised_from_the_head_with_their_statistics():
    model, variables, images = network("unet")
    trained = jax.tree.map(lambda x: x + 1, variables)
    layers, last = zip(*randomised(model, trained, images, 1), strict=True)
    order = ["head", "decoder0", "up0", "decoder1", "up1", "bottleneck", "encoder1", "encoder0"]
    assert list(layers) == order
    fresh = model.init(jax.random.key(1), images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), last[-1], fresh)
    np.testing.assert_array_equal(last[3]["batch_stats"]["decoder1"]["BatchNorm_0"]["var"], 1)
    np.testing.assert_array_equal(last[3]["batch_stats"]["bottleneck"]["BatchNorm_0"]["var"], 2)


def trained(model, variables, **data):
    info = DatasetInfo("mni152", "", ("background", "grey matter", "white matter"), (), 1)
    config = parse_config({"data": {"image_size": SIZE} | data})
    return TrainedModel(config, info, model, variables, step=3)


def test_the_result_is_written_with_examples(mni152, tmp_path):
    model, variables, _ = network("unet")
    result = measure_explanations(
        trained(model, variables), Split(mni152, "test"), tmp_path, feature="decoder0", max_cases=3
    )
    written = json.loads((tmp_path / "explanation" / "mni152-test.json").read_text())
    assert written["feature"] == "decoder0"
    assert [row["class"] for row in written["cases"]] == ["grey matter", "white matter"] * 3
    defined = [row["energy_inside"] for row in written["cases"] if row["energy_inside"] is not None]
    assert written["summary"]["energy_inside"]["count"] == len(defined) > 0
    assert written["summary"]["energy_inside"]["mean"] == pytest.approx(np.mean(defined))
    assert 0 < result["summary"]["chance"] < 1
    check = written["randomisation"]
    assert len(check["layers"]) == len(check["rank_correlation"]) == 8
    with np.load(tmp_path / "explanation" / "mni152-test-examples.npz") as pictures:
        for example in written["examples"]:
            names = [f"{example['key']}_{n}" for n in ("image", "label", "prediction", "map")]
            assert [pictures[name].shape for name in names] == [(233, 197)] * 4
            assert pictures[names[0]].dtype == np.uint8
            assert pictures[names[3]].dtype == np.float16


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_maps_are_of_what_is_predicted_and_scored_by_what_is_true(activation, tmp_path):
    """The network finds the square; most of the object is below it."""
    truth = np.zeros((1, SIZE, SIZE), np.uint8)
    truth[0, 20:, 12:28] = 1
    image = (255 * square_image()[None]).astype(np.uint8)
    classes, variables = ("background", "object"), PLANTED
    if activation == "sigmoid":  # the background has no logit, and what is dark is a class
        classes = ("background", "object", "dark")
        head = {"kernel": PLANTED["params"]["head"]["kernel"][:, ::-1], "bias": jnp.zeros(2)}
        variables = {"params": PLANTED["params"] | {"head": head}}
    info = DatasetInfo("mni152", "", classes, (), 1)
    values = {"data": {"image_size": SIZE}, "model": {"activation": activation}}
    network = TrainedModel(parse_config(values), info, Planted(), variables, step=3)
    split = make_split(info, {"a": Volume("a", image, truth, None)})
    result = measure_explanations(network, split, tmp_path, feature="feature", method="layer_cam")
    (row,) = result["cases"]
    # the map is even over the square, whose lower quarter is in the object; its peak comes first
    assert row["energy_inside"] == pytest.approx(4 / 16, abs=0.05)
    assert row["pointing"] == 0
    # the mean probability in the object, of which a third is in the square
    assert 0.05 < row["insertion_auc"] < 0.5
    assert result["summary"]["chance"] == pytest.approx(truth.mean())
    with np.load(tmp_path / "explanation" / "mni152-test-examples.npz") as pictures:
        np.testing.assert_array_equal(pictures["highest_label"], truth[0])
        np.testing.assert_array_equal(pictures["highest_prediction"] == 1, SQUARE)


def test_rollout_is_measured_where_there_is_attention(mni152, tmp_path):
    split = Split(mni152, "test")
    model, variables, _ = network("transunet")
    options = {"method": "attention_rollout", "max_cases": 1}
    result = measure_explanations(trained(model, variables), split, tmp_path, **options)
    assert result["feature"] is None
    assert len(result["cases"]) == 2
    with pytest.raises(ValueError, match="leave feature out"):
        measure_explanations(
            trained(model, variables), split, tmp_path, feature="tokens", **options
        )
    model, variables, _ = network("unet")
    with pytest.raises(ValueError, match="no attention"):
        measure_explanations(trained(model, variables), split, tmp_path, **options)
    with pytest.raises(ValueError, match="networks of slices"):
        measure_explanations(trained(model, {}, patch_size=(8, 8, 8)), split, tmp_path)
