"""The code of docs/extending.md, run as a person would who follows the page."""

import pathlib
import re

import numpy as np
import pytest
from etils import epath
from PIL import Image

from spectral_jax.data.datasets import DATASETS
from spectral_jax.inference.trained import restore
from spectral_jax.models import MODELS
from spectral_jax.training.config import default_config, parse_config
from spectral_jax.training.loop import train

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def registered(monkeypatch):
    """The page's network and data set under their names."""
    network, registration, dataset, study = BLOCKS
    assert registration == (
        'MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "transunet": TransUNet, '
        '"plain": Plain}\n'
    )
    scope = {}
    exec(network, scope)
    monkeypatch.setitem(MODELS, "plain", scope["Plain"])
    exec(dataset, scope)
    monkeypatch.setitem(DATASETS, "wounds", scope["DATASET"])
    exec(study, scope)
    return scope


def write_share(root):
    for kind in ("photos", "outlines"):
        (root / kind).mkdir(parents=True)
    for patient in range(6):
        for number in range(2):
            draw = np.random.default_rng([patient, number])
            mask = np.zeros((24, 24), np.uint8)
            mask[6:16, 5:17] = 255
            photo = np.repeat(mask[..., None] // 2, 3, 2) + draw.integers(0, 90, (24, 24, 3))
            name = f"patient{patient}_{number}.png"
            Image.fromarray(photo.astype(np.uint8)).save(root / "photos" / name)
            Image.fromarray(mask).save(root / "outlines" / name)


@pytest.mark.slow
def test_the_network_learns_from_the_data_set(registered, tmp_path):
    write_share(tmp_path / "share")
    values = default_config()
    values.update({"model": {"name": "plain", "plain": {"widths": (4,)}}})
    values.data.update({"name": "wounds", "root": str(tmp_path / "share"), "image_size": 24})
    values.data.data_dir = str(tmp_path / "prepared")
    values.train.update({"batch_size": 8, "epochs": 2.0})
    assert train(parse_config(values), epath.Path(tmp_path) / "run")
    trained = restore(epath.Path(tmp_path) / "run", "last")
    assert trained.data.classes == ("background", "wound")
    assert trained.data.sizes["train"]["cases"] == 2 * 4  # four patients of six
    assert trained.variables["params"]["Conv_0"]["kernel"].shape == (3, 3, 3, 4)


def test_the_study_has_arms_that_can_be_configured(registered):
    study = registered["get_study"]()
    assert list(study.arms) == ["none", "midband", "twin"]
    for changes in study.arms.values():
        values = study.config.copy_and_resolve_references()
        values.update_from_flattened_dict(changes)
        assert parse_config(values).data.name == "wounds"
