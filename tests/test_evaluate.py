"""Scores of cases as they are written: distances by hand, in the order of the axes."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from fake_split import make_split
from flax import linen as nn

from spectral_jax.data.sources import DatasetInfo, Volume
from spectral_jax.evaluation import evaluate as module
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.config import parse_config

INFO = DatasetInfo("folder", "any", ("background", "spot"), ("#000000", "#ffffff"), 1)
SPACING = (3.0, 1.0, 2.0)
SHIFTS = {"depth": (1, 0, 0), "height": (0, 1, 0), "width": (0, 0, 1)}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 8, 8), {"depth": 3.0, "height": 1.0, "width": 2.0}),
        ((1, 8, 8), {"height": 1.0, "width": 2.0}),
    ],
    ids=["volume", "picture"],
)
def test_distances_take_the_spacing_of_their_axis(tmp_path, monkeypatch, shape, expected):
    """A voxel, found one place beside it along each axis."""
    place = np.array(shape) // 2

    def spot(at):
        label = np.zeros(shape, np.uint8)
        label[tuple(at)] = 1
        return label

    def volume(name):
        image = np.full((*shape, 1), list(SHIFTS).index(name), np.uint8)
        return Volume(name, image, spot(place), SPACING)

    def labels(image, spacing_mm):
        assert spacing_mm == SPACING
        return spot(place + list(SHIFTS.values())[image.flat[0]])

    predictor = SimpleNamespace(labels=labels, threshold=0.5)
    monkeypatch.setattr(module, "Predictor", lambda trained, **_: predictor)
    split = make_split(INFO, {name: volume(name) for name in expected})
    workdir = epath.Path(tmp_path)
    trained = TrainedModel(parse_config({}), INFO, nn.Module(), {}, step=1)
    result = evaluate(trained, split, workdir)
    assert result["distance_unit"] == "mm"
    for row in result["cases"]:
        assert row["hd95"] == row["assd"] == expected[row["case"]]
        assert row["dice"] == 0
    assert json.loads((tmp_path / "evaluation" / "folder-test.json").read_text())["cases"]
