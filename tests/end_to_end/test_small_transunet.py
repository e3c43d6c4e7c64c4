"""A small TransUNet trains on real cardiac MRI through the whole loop."""

import json
import shutil

import numpy as np
import pytest
import tiny_networks

from spectral_jax.configs import folder
from spectral_jax.inference.trained import restore
from spectral_jax.training.config import parse_config
from spectral_jax.training.loop import train


@pytest.fixture
def few_slices(shared_data, tmp_path):
    root = tmp_path / "acdc"
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
            for path in sorted((shared_data / "ACDC_png" / split / kind).iterdir())[:count]:
                shutil.copy(path, root / split / kind)
    return root


@pytest.mark.slow
def test_its_loss_falls_on_acdc(few_slices, data_dir, tmp_path):
    """From a configuration of UNet, whose options stay behind, by its name alone."""
    values = folder.get_config()
    values.model.name = "transunet"
    values.data.root = str(few_slices)
    values.data.data_dir = str(data_dir)
    values.data.image_size = 64
    values.data.options.classes = ("background", "right ventricle", "myocardium", "left ventricle")
    values.data.options.case_pattern = r"(?P<case>.+)_slice_(?P<slice>\d+)"
    values.model.transunet.update(tiny_networks.TRANSUNET)
    values.optim.name = "sgd"
    values.optim.learning_rate = 0.01
    values.objective.spectral = "midband"
    values.train.batch_size = 8
    values.train.epochs, values.train.steps = 10.0, 0
    values.train.validate_every = 10.0
    values.train.log_every_steps = 1
    train(parse_config(values), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 30
    assert np.mean(losses[-8:]) < 0.7 * np.mean(losses[:8])
    trained = restore(tmp_path / "run", "last")
    assert trained.model.num_layers == 2
