"""Folders as people bring them: other names, one folder for all, masks of 0 and 1 or in colour."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from spectral_jax.data.datasets import DATASETS, prepare
from spectral_jax.data.sources import Split
from spectral_jax.data.volumes import DataError

MASK = np.zeros((12, 10), np.uint8)
MASK[3:9, 2:7] = 1


def write(folder, names, mask=255 * MASK, suffix=""):
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full(MASK.shape, 20 + number, np.uint8)).save(
            folder / f"images/{name}.png"
        )
        Image.fromarray(mask).save(folder / f"masks/{name}{suffix}.png")


def write_splits(root, **options):
    for split in ("train", "test"):
        write(root / split, [f"{split}_{i}" for i in range(2)], **options)
    return root


def prepared(root):
    # no options, as `experiments.evaluate --on=folder=ROOT` has none
    return prepare(DATASETS["folder"], root=root, data_dir=root.parent / "prepared")


def label(root):
    return Split(prepared(root), "test").volume("test_0").label[0]


GREEN = np.stack([0 * MASK, 200 * MASK, 0 * MASK], -1)


@pytest.mark.parametrize(
    "mask", [255 * MASK, MASK, MASK > 0, GREEN], ids=["0 and 255", "0 and 1", "one bit", "green"]
)
def test_masks_of_two_classes(tmp_path, mask):
    np.testing.assert_array_equal(label(write_splits(tmp_path / "mine", mask=mask)), MASK)


@pytest.mark.parametrize("suffix", ["_mask", "_seg", "_segmentation", "_label", "_gt"])
def test_suffixes_of_masks(tmp_path, suffix):
    np.testing.assert_array_equal(label(write_splits(tmp_path / "mine", suffix=suffix)), MASK)


def test_black_mask_is_empty(tmp_path):
    assert label(write_splits(tmp_path / "mine", mask=0 * MASK)).max() == 0


def test_class_numbers_without_names_are_no_empty_masks(tmp_path):
    with pytest.raises(DataError, match=r"train_0\.png: the brightest value is 2.*classes\.txt"):
        label(write_splits(tmp_path / "mine", mask=2 * MASK))


def test_more_than_two_names_mean_class_numbers(tmp_path):
    root = write_splits(tmp_path / "mine", mask=2 * MASK)
    (root / "classes.txt").write_text("background\nleft\nright\n")
    np.testing.assert_array_equal(label(root), 2 * MASK)


def test_one_folder_for_all_is_split(tmp_path):
    root = tmp_path / "mine"
    write(root, [f"p{i}" for i in range(20)])
    folder = prepared(root)
    splits = json.loads((folder / "summary.json").read_text())["splits"]
    assert {name: split["cases"] for name, split in splits.items()} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    names = [case for split in splits for case in Split(folder, split).cases]
    assert sorted(names) == sorted(f"p{i}" for i in range(20))


def test_missing_split_says_what_was_expected(tmp_path):
    root = write_splits(tmp_path / "mine")
    shutil.rmtree(root / "test")
    with pytest.raises(DataError, match=r"test: no such folder; expected test/images and"):
        label(root)


def test_hidden_files_are_no_pictures(tmp_path):
    root = write_splits(tmp_path / "mine")
    (root / "train/images/._train_0.png").write_bytes(b"left by a Mac")
    np.testing.assert_array_equal(label(root), MASK)


def test_missing_mask_says_which_names_fit(tmp_path):
    root = write_splits(tmp_path / "mine", suffix="-annotated")
    with pytest.raises(DataError, match=r"train_0\.png: no mask.*_segmentation"):
        label(root)
