"""Pictures of unusual kinds, from raw files to scores, report and prediction."""

import numpy as np
import pytest
from etils import epath
from PIL import Image

from spectral_jax.commands.evaluate import evaluate_split
from spectral_jax.configs import tiny
from spectral_jax.inference.cases import Prediction, find_sources, predict_sources
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import restore
from spectral_jax.reporting.run_page import write_report
from spectral_jax.training import run
from spectral_jax.training.config import parse_config
from spectral_jax.training.loop import train


def twelve_bits(draw):
    """Of ilastik/ilastik#126, HenriquesLab/ZeroCostDL4Mic#110: 12 bits in files of 16."""
    mask = np.zeros((40, 36), bool)
    top, left = draw.integers(4, 20, 2)
    mask[top : top + 14, left : left + 12] = True
    return (1500 * mask + draw.integers(0, 1500, mask.shape)).astype(np.uint16), mask


def thin(shape):
    """Lines of one pixel, and one pixel alone."""

    def draw_line(draw):
        mask = (np.arange(shape[0] * shape[1]) >= draw.integers(1, 20)).reshape(shape)
        return (150 * mask + draw.integers(0, 60, shape)).astype(np.uint8), mask

    return draw_line


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [twelve_bits, thin((40, 1)), thin((1, 40)), thin((1, 1))],
    ids=["12 bits", "a column", "a row", "a pixel"],
)
def test_scores_of_evaluation_are_those_of_prediction(make, tmp_path):
    truth = {}
    for index in range(16):
        image, mask = make(np.random.default_rng(index))
        truth[f"p{index:02d}"] = mask
        for kind, array in (("images", image), ("masks", mask.astype(np.uint8) * 255)):
            (tmp_path / "raw" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "raw" / kind / f"p{index:02d}.png")
    values = tiny.get_config()
    values.data.update({"name": "folder", "root": str(tmp_path / "raw"), "image_size": 32})
    values.data.data_dir = str(tmp_path / "prepared")
    values.train.update({"batch_size": 8, "epochs": 16.0, "validate_every": 16.0})
    values.optim.learning_rate = 0.02
    config, workdir = parse_config(values), epath.Path(tmp_path) / "run"
    assert train(config, workdir)
    data = run.prepare_data(config.data)
    scores = evaluate_split(workdir, data, "test", "best", "folder")["cases"]
    assert (workdir / "evaluation/folder-test.json").exists()
    assert write_report(workdir).read_text().rstrip().endswith("</html>")

    trained = restore(workdir)
    files = [tmp_path / "raw/images" / f"{row['case']}.png" for row in scores]
    sources = find_sources(files, tmp_path / "out")
    results = list(predict_sources(Predictor(trained), trained.data, sources))
    for row, result in zip(scores, results, strict=True):
        assert isinstance(result, Prediction), result
        assert result.scan.notes == ()
        ours, theirs = result.labels[0] > 0, truth[row["case"]]
        assert ours.shape == theirs.shape
        if both := ours.sum() + theirs.sum():
            assert row["dice"] == pytest.approx(2 * (ours & theirs).sum() / both)
        else:
            assert np.isnan(row["dice"])
    if make is twelve_bits:
        assert np.mean([row["dice"] for row in scores]) > 0.5
        assert trained.data.bits == 12
