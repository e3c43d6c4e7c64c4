"""Patches around foreground: how many, of which classes, and always the same ones."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest
from etils import epath
from raw_data import link

from spectral_jax.data import pipeline
from spectral_jax.data.datasets import DATASETS, prepare
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import (
    MOST_PLACES,
    CutPatch,
    Split,
    TrainingVolumes,
    fit_patch,
    foreground_places,
)
from spectral_jax.training.config import DataConfig, parse_config
from spectral_jax.training.run import read_config


def batches(examples, cut, count, **options):
    iterator = pipeline.training_batches(
        examples, **{"batch_size": 6, "seed": 3, "cut_patch": cut} | options
    )
    return [next(iterator) for _ in range(count)]


@pytest.fixture(scope="module")
def gallbladder(shared_data, tmp_path_factory):
    """A CT of which only the gallbladder is a class: 0.2 % of its voxels."""
    root = tmp_path_factory.mktemp("gallbladder")
    ct = nibabel.load(shared_data / "TotalSegmentator_CT/example_ct_sm.nii.gz")
    organs = nibabel.load(shared_data / "TotalSegmentator_CT/example_seg.nii.gz")
    label = (np.asarray(organs.dataobj) == 4).astype(np.uint8)
    for kind in ("images", "labels"):
        (root / f"raw/{kind}Tr").mkdir(parents=True)
    for name in "abc":
        nibabel.save(ct, root / f"raw/imagesTr/{name}.nii.gz")
        file = nibabel.Nifti1Image(label, ct.affine)
        nibabel.save(file, root / f"raw/labelsTr/{name}.nii.gz")
    listed = [
        {"image": f"imagesTr/{name}.nii.gz", "label": f"labelsTr/{name}.nii.gz"} for name in "abc"
    ]
    task = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "gallbladder"},
        "training": listed,
    }
    (root / "raw/dataset.json").write_text(json.dumps(task))
    folder = prepare(DATASETS["decathlon"], root=root / "raw", data_dir=root / "prepared")
    return TrainingVolumes(Split(folder, "all"))


@pytest.fixture(scope="module")
def hippocampi(shared_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("hippocampi")
    files = r"dataset\.json|.*_(00[478]|01[14])\.nii\.gz"
    raw = link(shared_data / "Task04_Hippocampus", root / "raw", files)
    folder = prepare(DATASETS["decathlon"], root=raw, data_dir=root / "prepared")
    return TrainingVolumes(Split(folder, "all"))


@pytest.mark.parametrize("size", [(8, 24, 24), (24, 24)])
def test_a_third_of_patches_hold_a_small_organ(gallbladder, size):
    def share(foreground):
        found = batches(gallbladder, CutPatch(size, foreground), 60)
        return np.mean([label.any() for batch in found for label in batch["label"]])

    default = DataConfig().foreground
    assert share(0.0) < 0.2
    assert share(default) >= 1 / 3
    assert share(1.0) == 1


def test_classes_take_turns_at_the_middle_of_patches(hippocampi):
    cut = CutPatch((3, 3, 3), 1 / 3)
    labels = np.concatenate([batch["label"] for batch in batches(hippocampi, cut, 30)])
    middles = labels[:, 1, 1, 1]
    around = middles[2::3]  # every third
    assert len(around) == 60
    assert (around == 1).sum() == (around == 2).sum() == 30
    assert (np.delete(middles, slice(2, None, 3)) > 0).mean() < 0.3


def test_patches_depend_on_seed_and_step_alone(hippocampi):
    cut = CutPatch((8, 16, 16), 1 / 3)
    whole = batches(hippocampi, cut, 12)
    for processes in (2, 3):
        shares = [
            batches(hippocampi, cut, 12, process_index=i, process_count=processes)
            for i in range(processes)
        ]
        for step, batch in enumerate(whole):
            for key in ("image", "label", "record"):
                together = np.concatenate([share[step][key] for share in shares])
                np.testing.assert_array_equal(together, batch[key])
    resumed = batches(hippocampi, cut, 5, first_step=7)
    for ours, theirs in zip(resumed, whole[7:], strict=True):
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    other = batches(hippocampi, cut, 12, seed=4)
    assert any((a["image"] != b["image"]).any() for a, b in zip(whole, other, strict=True))


class CutAnywhere:
    """How patches were cut before there was a share of foreground."""

    foreground = 0.0

    def __init__(self, size):
        self.size = size

    def __call__(self, example, generator):
        room = [max(0, n - p) for n, p in zip(example["label"].shape, self.size, strict=True)]
        start = [int(generator.integers(n + 1)) for n in room]
        return {key: fit_patch(example[key], start, self.size) for key in ("image", "label")}


def test_without_a_share_patches_are_those_of_before(hippocampi):
    size = (8, 16, 16)
    ours = batches(hippocampi, CutPatch(size, 0.0), 6)
    before = batches(hippocampi, CutAnywhere(size), 6)
    for one, other in zip(ours, before, strict=True):
        for key in ("image", "label"):
            np.testing.assert_array_equal(one[key], other[key])


def test_labels_belong_to_their_images(rng):
    """Around foreground, at the border, and where a case is shorter than the patch."""
    label = np.zeros((6, 30, 40), np.uint8)
    label[0, 0, 0] = label[5, 29, 39] = 1
    label[2:4, 10:14, 20:22] = 2
    image = np.arange(1, label.size + 1, dtype=np.uint16).reshape(label.shape)[..., None]
    of_value = np.append(np.uint8(0), label)  # 0 where a patch is longer than the case
    example = {
        "image": image,
        "label": label,
        "record": np.int32(0),
        "foreground": foreground_places(label, Labels(2)),
    }
    cut = CutPatch((8, 8, 8), 1.0)
    for number in range(20):
        patch = cut({**example, "number": number}, rng)
        assert patch["image"].shape == (8, 8, 8, 1)
        assert (patch["label"] == 1 + number % 2).any()
        np.testing.assert_array_equal(patch["label"], of_value[patch["image"][..., 0]])
    middle = cut(example)  # in validation
    assert (middle["label"] == 2).sum() == 16


def test_places_are_few_and_spread(rng):
    label = rng.integers(0, 3, (50, 40, 30)).astype(np.uint8)
    label[..., :10] = 255
    places = foreground_places(label, Labels(4, ignore=True))
    assert len(places) == 2  # of four classes two are there
    for number, of_class in enumerate(places, start=1):
        assert len(of_class) == MOST_PLACES
        assert (label.ravel()[of_class] == number).all()
        assert np.diff(of_class).max() < 100
    overlapping = foreground_places(np.array([[0, 1, 3], [2, 0, 255]], np.uint8), Labels(2, True))
    assert [places.tolist() for places in overlapping] == [[1, 2], [2, 3]]


def test_older_runs_go_on_as_they_began(tmp_path):
    """What they did not say of patches is what they did; of slices there is nothing to say."""
    for patch_size, expected in (((4, 8, 8), (0.0, False)), ((), (1 / 3, True))):
        values = dataclasses.asdict(parse_config({"data": {"patch_size": patch_size}}))
        for key in ("foreground", "resample", "spacing_mm"):
            del values["data"][key]
        (tmp_path / "config.json").write_text(json.dumps(values))
        data = read_config(epath.Path(tmp_path)).data
        assert (data.foreground, data.resample) == expected
