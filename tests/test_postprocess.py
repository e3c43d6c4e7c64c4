"""After the network: islands are taken away where validation says so."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import linen as nn
from PIL import Image

from spectral_jax.data.datasets import DATASETS, prepare
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.evaluation.postprocess import decide_largest
from spectral_jax.inference.cases import find_sources, predict_sources
from spectral_jax.inference.export import describe_model, model_card
from spectral_jax.inference.postprocess import keep_largest, read_decision
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel, average
from spectral_jax.reporting.run_page import write_report
from spectral_jax.training.config import parse_config

BRIGHTNESS = {"background": 0, "organ": 120, "nodule": 240}


def test_the_largest_component_of_a_class_in_a_volume():
    label = np.zeros((3, 6, 6), np.uint8)
    label[0, 0, 0] = label[1, 1, 1] = label[2, 2, 2] = 1  # by their corners
    label[0, 4:, 5] = 1
    label[0, 0, 4:] = 2
    kept = keep_largest(label, Labels(2), [1])
    expected = label.copy()
    expected[0, 4:, 5] = 0
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(keep_largest(label, Labels(2), []), label)
    empty = np.zeros((1, 4, 4), np.uint8)
    np.testing.assert_array_equal(keep_largest(empty, Labels(2), [1, 2]), empty)


def test_what_overlaps_an_island_stays():
    labels = Labels(9, overlapping=True)  # in 16 bits
    masks = np.zeros((1, 4, 8, 9), bool)
    masks[..., 8] = True
    masks[0, :, :3, 0] = masks[0, 0, 6, 0] = True
    kept = keep_largest(labels.pack(masks), labels, [1, 9])
    masks[0, 0, 6, 0] = False
    np.testing.assert_array_equal(kept, labels.pack(masks))


class ByBrightness(nn.Module):
    """The class whose brightness is nearest."""

    @nn.compact
    def __call__(self, images, train=False):
        return -100 * jnp.square(images - jnp.array([*BRIGHTNESS.values()]) / 255)


def picture(organ_island):
    """An image and its mask: an organ, a spot like it elsewhere, and two nodules."""
    mask = np.zeros((32, 32), np.uint8)
    mask[4:20, 4:14] = 1
    mask[24:28, 4:8] = mask[24:27, 20:22] = 2
    image = np.array([*BRIGHTNESS.values()], np.uint8)[mask]
    image[8:12, 24:28] = BRIGHTNESS["organ"] * organ_island
    return image, mask


@pytest.fixture
def islands(tmp_path):
    """A network that finds an island beside each organ, and the records of its data set."""
    root = tmp_path / "raw"
    for split, count in (("train", 1), ("val", 3), ("test", 2)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            for kind, array in zip(("images", "masks"), picture(number != 2), strict=True):
                Image.fromarray(array).save(root / split / kind / f"{split}{number}.png")
    (root / "classes.txt").write_text("\n".join(BRIGHTNESS))
    folder = prepare(DATASETS["folder"], root=root, data_dir=tmp_path / "prepared")
    config = parse_config({"data": {"name": "folder", "image_size": 32}})
    trained = TrainedModel(config, Split(folder, "train").info, ByBrightness(), {}, 7)
    return trained, folder, epath.Path(tmp_path) / "run"


def test_an_island_is_taken_away_where_validation_says_so(islands, tmp_path):
    trained, folder, workdir = islands
    workdir.mkdir()
    decision = decide_largest(trained, Split(folder, "validation"), workdir)
    assert decision == json.loads((workdir / "postprocess.json").read_text())
    assert decision["largest_component"] == ["organ"]
    organ, nodule = decision["validation_dice"].values()
    dice = 2 * 160 / (160 + 160 + 16)
    assert organ == {"all": pytest.approx((2 * dice + 1) / 3), "largest": 1.0}
    assert nodule == {"all": 1.0, "largest": pytest.approx(2 * 16 / (22 + 16))}
    assert decision["checkpoint"] == {"name": "best", "step": 7}

    largest = read_decision(workdir, trained.data)
    assert largest == (1,)
    with_it = dataclasses.replace(trained, largest=largest)
    before, after = (evaluate(of, Split(folder, "test"), workdir) for of in (trained, with_it))
    assert before["by_class"]["organ"]["dice"]["mean"] == pytest.approx(dice)
    assert after["by_class"]["organ"]["dice"]["mean"] == 1
    assert after["by_class"]["nodule"]["dice"]["mean"] == 1
    assert (before["largest_component"], after["largest_component"]) == ([], ["organ"])
    assert "Only the largest component is kept of organ" in write_report(workdir).read_text()

    sources = find_sources([tmp_path / "raw/test/images"], tmp_path / "out")
    _, mask = picture(organ_island=True)
    for prediction in predict_sources(
        Predictor(with_it), trained.data, sources, probabilities=True
    ):
        np.testing.assert_array_equal(prediction.labels[0], mask)
        assert prediction.probabilities[0, 9, 25].argmax() == 1  # of the network alone
    assert model_card(describe(with_it)).count("largest connected component") == 1
    assert "largest connected component" not in model_card(describe(trained))
    both = average([with_it, trained], ["a", "b"])
    assert both.largest == ()


def describe(trained):
    facts = describe_model(trained, epath.Path("nowhere"), "best")
    return facts | {"file": "model.jax", "platforms": ["cpu"], "largest_difference": 0.0}


def test_a_damaged_decision_is_named(islands):
    trained, _, workdir = islands
    workdir.mkdir()
    assert read_decision(workdir, trained.data) == ()
    for content in ('{"largest_component": ["liver"]}', '{"largest": []}', "{"):
        (workdir / "postprocess.json").write_text(content)
        with pytest.raises(ValueError, match=r"postprocess\.json"):
            read_decision(workdir, trained.data)
