"""Several channels: prepared, evaluated and predicted alike, from one file or from one for each."""

import dataclasses
import json

import h5py
import nibabel
import numpy as np
import pytest
from flax import linen as nn
from PIL import Image
from raw_data import split_channels, write_four_channels, write_series

from spectral_jax.data.datasets import DATASETS, DataError, prepare
from spectral_jax.data.datasets.builder import encode_png
from spectral_jax.data.sources import DatasetInfo, Split
from spectral_jax.data.volumes import mri_percentile, scale
from spectral_jax.evaluation.cases import MatchedCases
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.inference.cases import Failure, find_sources, predict_sources
from spectral_jax.inference.export import describe_model
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.training.config import parse_config

BRATS = ("FLAIR", "T1w", "t1gd", "T2w")
NAMES = tuple(f"hippocampus_{number:03d}" for number in (4, 7, 8, 11, 14))


class Last(nn.Module):
    """A pixel that is bright in the last channel, and dark in the first, is class 1."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images[..., -1:] - images[..., :1]
        return 40 * np.concatenate([[-0.5], [0.5], [-9]]) * x


@pytest.fixture(scope="module")
def brats(shared_data, tmp_path_factory):
    """The raw task, and its prepared cases."""
    folder = tmp_path_factory.mktemp("brats")
    root = write_four_channels(shared_data / "Task04_Hippocampus", folder / "raw", NAMES)
    return root, prepare(DATASETS["decathlon"], root=root, data_dir=folder / "prepared")


def network(info: DatasetInfo) -> TrainedModel:
    config = parse_config({"data": {"name": "decathlon", "image_size": 32}})
    return TrainedModel(config, info, Last(), {}, step=1)


def test_every_modality_is_a_channel(brats):
    root, folder = brats
    everything = Split(folder, "all")
    info = everything.info
    assert (info.channels, info.channel_names, info.volume) == (4, BRATS, None)
    assert info.intensity == ("mri_percentile",) * 4
    image = everything.volume(NAMES[0]).image
    raw = np.asarray(nibabel.load(root / f"imagesTr/{NAMES[0]}.nii.gz").dataobj)
    assert image.shape == (*raw.shape[2::-1], 4)
    for channel in range(4):
        expected = mri_percentile(raw[..., channel]).T
        np.testing.assert_array_equal(image[..., channel], expected)
    assert json.loads((folder / "summary.json").read_text())["channel_names"] == list(BRATS)


def test_one_modality_is_what_it_was(brats, tmp_path):
    root, folder = brats
    one = Split(prepare(DATASETS["decathlon"], root=root, data_dir=tmp_path, channel="t1w"), "all")
    assert (one.info.channels, one.info.channel_names, one.info.volume) == (1, (), 1)
    assert one.info.intensity == "mri_percentile"
    four = Split(folder, "all")
    for name in NAMES[:2]:
        np.testing.assert_array_equal(
            one.volume(name).image[..., 0], four.volume(name).image[..., 1]
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels_is_a_png(dtype, channels, rng):
    import io

    image = rng.integers(0, np.iinfo(dtype).max, (5, 6, channels)).astype(dtype)
    stored = np.asarray(Image.open(io.BytesIO(encode_png(image))))
    if stored.ndim == 2:
        stored = np.moveaxis(stored.reshape(channels, 5, 6), 0, -1)
    np.testing.assert_array_equal(stored, image)
    assert stored.dtype == dtype


def predict(paths, info, output):
    sources = find_sources(paths, output, len(info.channel_names))
    predictor = Predictor(network(info))
    return {result.source.name: result for result in predict_sources(predictor, info, sources)}


def test_one_file_of_all_or_one_for_each_get_the_same_masks(brats, tmp_path):
    root, folder = brats
    info = Split(folder, "all").info
    whole = root / f"imagesTr/{NAMES[0]}.nii.gz"
    parts = [tmp_path / "in/b", tmp_path / "in/c"]
    for part in parts:
        split_channels(whole, part)
    split_channels(root / f"imagesTr/{NAMES[1]}.nii.gz", parts[0])
    expected = predict([whole], info, tmp_path / "out")[NAMES[0]]
    assert expected.labels.any()
    found = predict([tmp_path / "in"], info, tmp_path / "out")
    assert set(found) == {f"b/{NAMES[0]}", f"b/{NAMES[1]}", f"c/{NAMES[0]}"}
    for place in "bc":
        np.testing.assert_array_equal(found[f"{place}/{NAMES[0]}"].labels, expected.labels)
        assert len(found[f"{place}/{NAMES[0]}"].source.files) == 4
    assert (found[f"b/{NAMES[1]}"].labels.shape) != expected.labels.shape
    # given one by one, in any order; and what is written has the scan's grid
    files = sorted(parts[0].iterdir(), reverse=True)
    result = predict(files, info, tmp_path / "out")[NAMES[0]]
    (written,) = result.scan.write_labels(result.labels, tmp_path / "out" / NAMES[0], "ab", "ab")
    mask, scan = nibabel.load(written), nibabel.load(whole)
    assert mask.shape == scan.shape[:3]
    np.testing.assert_array_equal(mask.affine, scan.affine)
    # as the prepared case is evaluated
    labels = Predictor(network(info)).labels(Split(folder, "all").volume(NAMES[0]).image)
    np.testing.assert_array_equal(result.labels, labels)


def test_what_lacks_a_channel_is_refused(brats, tmp_path):
    root, folder = brats
    info = Split(folder, "all").info
    files = split_channels(root / f"imagesTr/{NAMES[0]}.nii.gz", tmp_path / "in")
    files[2].unlink()
    write_series(root.parent / "raw" / f"labelsTr/{NAMES[0]}.nii.gz", tmp_path / "in/series")
    with h5py.File(tmp_path / "in/a.h5", "w") as file:
        file["image"] = np.zeros((8, 8, 3), np.float32)
    results = predict([tmp_path / "in"], info, tmp_path / "out")
    assert all(isinstance(result, Failure) for result in results.values())
    reasons = " ".join(result.reason for result in results.values())
    assert f"{files[0]}: holds 1 volume; expected 4, one a channel, or a file for each" in reasons
    assert "1 channel, but the network takes 4 (FLAIR, T1w, t1gd, T2w)" in reasons
    assert len(results) == 5


def test_other_channels_are_not_evaluated(brats):
    _, folder = brats
    split = Split(folder, "all")
    ours = dataclasses.replace(split.info, channel_names=("T1w", *BRATS[:1], *BRATS[2:]))
    with pytest.raises(ValueError, match=r"has the channels FLAIR, .*the network takes T1w, FLAIR"):
        MatchedCases(network(ours), split)


def test_scores_report_and_facts(brats, tmp_path):
    _, folder = brats
    split = Split(folder, "test")
    trained = network(split.info)
    result = evaluate(trained, split, tmp_path, "last")
    assert {row["case"] for row in result["cases"]} == set(split.cases)
    facts = describe_model(trained, tmp_path, "last")
    assert facts["input"]["channels"] == list(BRATS)
    assert facts["input"]["shape"][-1] == 4
    assert "FLAIR: percentiles 0.5" in facts["input"]["intensity"]["meaning"]
    with np.load(next((tmp_path / "evaluation").glob("*.npz"))) as pictures:
        assert pictures["best_image"].shape == pictures["best_label"].shape  # the first channel


def test_channels_of_other_sizes_are_refused(tmp_path):
    from spectral_jax.data.datasets.files import read_channels

    paths = [tmp_path / f"a_000{number}.png" for number in range(2)]
    for number, path in enumerate(paths):
        Image.new("L", (8, 8 + number)).save(path)
    with pytest.raises(DataError, match=r"a_0001\.png: \(9, 8\) pixels, but a_0000\.png"):
        read_channels(paths)
    Image.new("RGB", (8, 8), "red").save(paths[1])
    with pytest.raises(DataError, match="colour in one of 2 files of a case; expected grey"):
        read_channels(paths)


def test_scaling_by_channel(rng):
    image = rng.normal(0, 300, (3, 4, 5, 2))
    both = scale(image, ("ct_window", "mri_percentile"))
    np.testing.assert_array_equal(both[..., :1], scale(image[..., :1], "ct_window"))
    np.testing.assert_array_equal(both[..., 1], mri_percentile(image[..., 1]))
