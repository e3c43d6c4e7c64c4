"""Every set from its files through training to scores."""

import pytest
from raw_data import link
from test_datasets import SAMPLES

from spectral_jax.configs import hippocampus_3d, tiny
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.inference.trained import restore
from spectral_jax.training import run
from spectral_jax.training.config import parse_config
from spectral_jax.training.loop import train

TRAINABLE = [name for name, sample in SAMPLES.items() if "train" in sample.cases]


def two_steps(values, workdir):
    """Trains for two steps and scores the test split."""
    values.train.batch_size = 8
    folder = run.prepare_data(parse_config(values).data)
    split = Split(folder, "train")
    examples = len(split.cases) if values.data.patch_size else len(split)
    values.train.epochs = 16 / examples
    config = parse_config(values)
    train(config, workdir)
    trained = restore(workdir, "last")
    assert trained.step == 2
    return evaluate(trained, Split(folder, "test"), workdir, "last")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINABLE)
def test_it_trains_and_is_scored(name, shared_data, tmp_path):
    sample = SAMPLES[name]
    values = tiny.get_config()
    values.data.name = sample.dataset
    values.data.root = str(link(shared_data / sample.folder, tmp_path / "raw", sample.files))
    values.data.data_dir = str(tmp_path / "prepared")
    values.data.image_size = 32
    values.data.options = sample.options
    result = two_steps(values, tmp_path / "run")
    assert {row["case"] for row in result["cases"]} == set(
        Split(run.prepare_data(parse_config(values).data), "test").cases
    )
    assert result["distance_unit"] == ("mm" if sample.dataset == "decathlon" else "px")


@pytest.mark.slow
def test_volumes_train_in_patches_and_are_scored_whole(shared_data, tmp_path):
    sample = SAMPLES["decathlon"]
    values = hippocampus_3d.get_config()
    values.data.root = str(link(shared_data / sample.folder, tmp_path / "raw", sample.files))
    values.data.data_dir = str(tmp_path / "prepared")
    values.data.patch_size = (16, 16, 16)
    values.model.unet.widths = (4, 8)
    result = two_steps(values, tmp_path / "run")
    assert [row["class"] for row in result["cases"]] == ["Anterior", "Posterior"]
