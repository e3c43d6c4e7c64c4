"""A network without its run: written, read again, and what is said where it does not fit."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image
from test_export import probabilities_of, trained

from spectral_jax.commands.flags import EXAMPLE
from spectral_jax.data.sources import Split
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import restore, write_weights
from spectral_jax.training.config import ConfigError
from spectral_jax.training.restore import WEIGHTS_FILE


@pytest.fixture
def written(tmp_path):
    network = trained("unet", 16)
    write_weights(network, epath.Path(tmp_path) / "shared")
    return network, epath.Path(tmp_path) / "shared"


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_a_shared_network_is_the_same(written, checkpoint, rng):
    network, folder = written
    again = restore(folder, checkpoint)
    assert again.step == network.step
    assert dataclasses.replace(again.data, axes=()) == network.data  # those of its data set
    images = rng.random((2, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        probabilities_of(again, images), probabilities_of(network, images)
    )


def test_where_its_data_lay_is_not_told(written):
    _, folder = written
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["root"] == config["data"]["data_dir"] == ""
    assert {path.name for path in folder.iterdir()} == {"config.json", "dataset.json", WEIGHTS_FILE}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.popitem(), "is not as the configuration beside it says"),
        (lambda arrays: arrays.update(extra=np.zeros(3)), "extra is not as the configuration"),
        (
            lambda arrays: arrays.update({"params/head/bias": np.zeros(7)}),
            "params/head/bias is not as the configuration",
        ),
    ],
)
def test_weights_of_another_network_are_refused(written, change, message):
    _, folder = written
    with np.load(folder / WEIGHTS_FILE) as file:
        arrays = dict(file)
    step = arrays.pop("step")
    change(arrays)
    np.savez(folder / WEIGHTS_FILE, step=step, **arrays)
    with pytest.raises(ConfigError, match=message):
        restore(folder)


def test_damaged_weights_are_named(written):
    _, folder = written
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"weights\.npz is damaged"):
        restore(folder)


def test_the_example_is_small_and_finds_matter_in_its_slices(mni152):
    """As well as the quickstart promises, on slices that it was not trained on."""
    assert sum(file.stat().st_size for file in EXAMPLE.rglob("*")) < 2_000_000
    assert "Copyright (C) 1993-2004 Louis Collins" in (EXAMPLE / "README.md").read_text()
    network = restore(epath.Path(EXAMPLE))
    assert len(jax.tree.leaves(network.variables)) > 10
    test = Split(mni152, "test")
    predictor = Predictor(network)
    slices = sorted((EXAMPLE / "pictures").iterdir())
    assert len(slices) == 2
    for file in slices:
        volume = test.volume(file.stem)  # of the test split
        image = np.asarray(Image.open(file))
        np.testing.assert_array_equal(image, volume.image[0, ..., 0])
        found = predictor.labels(image[None, ..., None])
        for number in (1, 2):
            ours, theirs = found == number, volume.label == number
            assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.85
