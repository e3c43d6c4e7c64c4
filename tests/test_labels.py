"""Stored labels: class numbers, overlapping classes as bits, and pixels that do not count."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from spectral_jax.data.augment import augment
from spectral_jax.data.datasets import DATASETS, prepare
from spectral_jax.data.labels import MOST_OVERLAPPING, Labels, regions_table
from spectral_jax.data.sources import Split, TrainingSlices, resize_label
from spectral_jax.data.volumes import DataError
from spectral_jax.training.config import ModelConfig, parse_config
from spectral_jax.training.objective import make_objective, weights_by_frequency
from spectral_jax.training.sharding import AXES


@pytest.mark.parametrize("classes", [1, 7, 8, MOST_OVERLAPPING])
def test_overlapping_masks_survive_packing_and_resizing(rng, classes):
    labels = Labels(classes, overlapping=True, ignore=True)
    masks = rng.random((6, 5, classes)) < 0.5
    masks[0, 0] = True  # all of them at once is not "ignored"
    packed = labels.pack(masks)
    np.testing.assert_array_equal(labels.masks(packed), masks)
    np.testing.assert_array_equal(jax.jit(labels.masks)(packed), masks)
    for number in range(1, classes + 1):
        np.testing.assert_array_equal(labels.mask(packed, number), masks[..., number - 1])
    assert labels.valid(packed).all()
    twice = resize_label(packed, (12, 10))
    np.testing.assert_array_equal(labels.masks(twice), masks.repeat(2, 0).repeat(2, 1))
    packed[1, 2] = np.iinfo(labels.dtype).max
    assert not labels.masks(packed)[1, 2].any()
    assert labels.valid(packed).sum() == 29
    counted = labels.valid(packed)
    expected = [(~masks.any(-1) & counted).sum(), *(masks & counted[..., None]).sum((0, 1))]
    np.testing.assert_array_equal(labels.count(packed), expected)


def test_class_numbers_and_ignored_pixels():
    labels = Labels(2, ignore=True)
    stored = np.array([[0, 1, 2], [255, 2, 255]], np.uint8)
    np.testing.assert_array_equal(labels.masks(stored)[..., 1], stored == 2)
    np.testing.assert_array_equal(labels.valid(stored), stored != 255)
    assert labels.count(stored).tolist() == [1, 1, 2]
    np.testing.assert_array_equal(labels.topmost(stored), stored)


def test_translation_between_codings():
    exclusive, overlapping = Labels(3, ignore=True), Labels(2, overlapping=True, ignore=True)
    table = exclusive.translate({1: 2, 3: 1}, overlapping)
    assert table[[0, 1, 2, 3, 255]].tolist() == [0, 2, 0, 1, 255]
    table = overlapping.translate({1: 2, 2: 1}, overlapping)
    assert table[[0, 1, 2, 3, 255]].tolist() == [0, 2, 1, 3, 255]
    many = Labels(9, overlapping=True, ignore=True)
    table = overlapping.translate({1: 9}, many)
    assert table[[1, 2, 3, 255]].tolist() == [256, 0, 256, 65535]


def test_augmentation_keeps_what_is_ignored_where_it_is(rng):
    """Image and label move together, and what comes in over the border is of the same kind."""
    labels = rng.choice(np.array([0, 1, 130, 255], np.uint8), (4, 6, 6)).repeat(8, 1).repeat(8, 2)
    images = jnp.asarray(labels[..., None] / 255, jnp.float32)
    changes = {"contrast": 0.0, "brightness": 0.0, "gamma": 0.0}
    for dtype in (np.uint8, np.uint16):
        moved, label = jax.jit(
            lambda image, label: augment(
                jax.random.key(3), image, label, affine_probability=1.0, shift=0.3, **changes
            )
        )(images, labels.astype(dtype))
        assert label.dtype == dtype
        assert set(np.unique(label)) <= {0, 1, 130, 255}
        assert (np.asarray(label) != labels).mean() > 0.3
        inside = np.abs(np.asarray(moved)[..., 0] * 255 - np.asarray(label)) < 1e-3
        assert inside.mean() > 0.6  # the others lie between two blocks, where the image is blended
        for value in (0, 1, 130, 255):
            assert inside[np.asarray(label) == value].mean() > 0.5


def test_regions_table():
    table = regions_table({"whole": [1, 2], "core": [2]}, ignore_label=4)
    assert table[[0, 1, 2, 3, 4]].tolist() == [0, 1, 3, 0, 255]
    many = regions_table({str(n): [n] for n in range(1, 9)}, ignore_label=None)
    assert many.dtype == np.uint16
    assert many[[1, 8, 255]].tolist() == [1, 128, 0]


def test_weights_by_frequency_make_rare_classes_weigh_as_much_as_frequent_ones():
    share = np.array([0.9, 0.0, 0.08, 0.02])
    weights = weights_by_frequency(share, "softmax")
    np.testing.assert_allclose((weights * share)[[0, 2, 3]], 1 / 3)
    assert weights[1] == 0
    weights = weights_by_frequency([0.5, 0.25, 0.0], "sigmoid")
    np.testing.assert_allclose(weights, [3.0, 1.0])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_frequency_in_a_configuration_is_the_weights_of_the_data(rng, activation):
    share = [0.7, 0.2, 0.1]
    label = rng.choice(np.array([0, 1, 2], np.uint8), (2, 8, 8), p=share)
    channels = 3 if activation == "softmax" else 2
    logits = rng.standard_normal((2, 8, 8, channels)).astype(np.float32)
    one_device = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), AXES)

    def loss(class_weights):
        spatial = {"cross_entropy": {"class_weights": class_weights}}
        config = parse_config(
            {"model": {"activation": activation}, "objective": {"spatial": spatial}}
        )
        objective = make_objective(config, Labels(2), share)
        whole = jax.sharding.PartitionSpec(AXES)
        terms = jax.shard_map(
            objective,
            mesh=one_device,
            in_specs=(whole, whole, jax.sharding.PartitionSpec()),
            out_specs=jax.sharding.PartitionSpec(),
        )
        return float(terms(logits, label, np.float32(0))["cross_entropy"])

    weights = weights_by_frequency(share, activation).tolist()
    assert loss("frequency") == pytest.approx(loss(weights), rel=1e-6)
    assert loss("frequency") != pytest.approx(loss(None), rel=1e-2)


def test_the_activation_follows_the_data():
    assert ModelConfig().activation_for(overlapping=True) == "sigmoid"
    assert ModelConfig().activation_for(overlapping=False) == "softmax"
    assert ModelConfig(activation="sigmoid").activation_for(overlapping=False) == "sigmoid"
    with pytest.raises(ValueError, match="classes of this data set overlap"):
        ModelConfig(activation="softmax").activation_for(overlapping=True)


@pytest.fixture
def pictures(tmp_path, rng):
    """Six pictures with masks of class numbers 0, 1, 2 and of 9 where nobody knows."""
    for kind in ("images", "masks"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
    masks = rng.choice(np.array([0, 1, 2, 9], np.uint8), (6, 20, 24))
    for number, mask in enumerate(masks):
        Image.fromarray(mask * 20).save(tmp_path / "raw" / "images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "raw" / "masks" / f"{number}.png")
    (tmp_path / "raw" / "classes.txt").write_text("background\nliver\ntumour\n")
    return tmp_path / "raw", masks


def prepared(root, **options):
    return prepare(DATASETS["folder"], root=root, data_dir=root.parent / "data", **options)


def test_an_ignore_label_goes_into_the_records(pictures):
    root, masks = pictures
    with pytest.raises(DataError, match=r"value 9.*ignore_label=9"):
        prepared(root)
    split = Split(prepared(root, ignore_label=9), "all")
    assert split.info.labels == Labels(2, ignore=True)
    for case in split.cases:
        expected = np.where(masks[int(case)] == 9, 255, masks[int(case)])
        np.testing.assert_array_equal(split.volume(case).label[0], expected)
    slices = TrainingSlices(split, 40)
    assert set(np.unique(slices[0]["label"])) == {0, 1, 2, 255}


def test_regions_are_made_of_class_numbers_and_names(pictures):
    root, masks = pictures
    split = Split(
        prepared(root, ignore_label=9, regions={"organ": (1, "tumour"), "core": [2]}), "all"
    )
    assert split.info.classes == ("background", "organ", "core")
    labels = split.info.labels
    assert labels == Labels(2, overlapping=True, ignore=True)
    for case in split.cases:
        label, mask = split.volume(case).label[0], masks[int(case)]
        np.testing.assert_array_equal(labels.mask(label, 1), (mask == 1) | (mask == 2))
        np.testing.assert_array_equal(labels.mask(label, 2), mask == 2)
        np.testing.assert_array_equal(labels.valid(label), mask != 9)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"organ": (1, 3)}, r"region 'organ': class 3; expected some of 1 liver, 2 tumour"),
        ({"organ": ("livr",)}, r"class 'livr'; expected some of 1 liver"),
        ({"organ": ()}, "region 'organ': no class"),
        ({"organ": (0, 1)}, "class 0"),
        ({"a/b": (1,)}, "'a/b'"),
        ({str(n): (1,) for n in range(16)}, "at most 15"),
    ],
)
def test_regions_that_cannot_be_are_named(pictures, regions, message):
    with pytest.raises(DataError, match=message):
        prepared(pictures[0], ignore_label=9, regions=regions)


def test_black_and_white_masks_may_have_a_value_that_does_not_count(tmp_path, rng):
    """0, 1 and 255 as in VOC, with a palette too; 0, 128 and 255."""
    truth = rng.choice(np.array([0, 1, 255], np.uint8), (4, 12, 12))
    for kind in ("images", "masks"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
    for number, mask in enumerate(truth):
        Image.fromarray(rng.integers(0, 255, (12, 12), np.uint8)).save(
            tmp_path / "raw" / "images" / f"{number}.png"
        )
        picture = Image.fromarray(mask)
        if number % 2:
            picture.putpalette(bytes([0, 0, 0, 128, 0, 0, *[7] * 759, 224, 224, 192]))
        picture.save(tmp_path / "raw" / "masks" / f"{number}.png")
    split = Split(prepared(tmp_path / "raw", ignore_label=255), "all")
    assert split.info.labels == Labels(1, ignore=True)
    for case in split.cases:
        np.testing.assert_array_equal(split.volume(case).label[0], truth[int(case)])
    for number, mask in enumerate(truth):
        values = np.choose(np.minimum(mask, 2), [0, 255, 128]).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / "raw" / "masks" / f"{number}.png")
    split = Split(prepared(tmp_path / "raw", ignore_label=128), "all")
    for case in split.cases:
        np.testing.assert_array_equal(split.volume(case).label[0], truth[int(case)])
    values[values == 128] = 0
    for number in range(4):
        Image.fromarray(values).save(tmp_path / "raw" / "masks" / f"{number}.png")
    summary = json.loads((prepared(tmp_path / "raw", ignore_label=77) / "summary.json").read_text())
    assert any("no mask holds ignore_label=77" in remark for remark in summary["remarks"])
    with pytest.raises(DataError, match="ignore_label=1: in masks of two classes"):
        prepared(tmp_path / "raw", ignore_label=1)
    Image.fromarray(truth[0]).save(tmp_path / "raw" / "masks" / "0.jpg")
    (tmp_path / "raw" / "masks" / "0.png").unlink()
    with pytest.raises(DataError, match=r"0\.jpg: compressed as JPEG is"):
        prepared(tmp_path / "raw", ignore_label=128)


@pytest.fixture
def a_folder_a_class(tmp_path, rng):
    """Pictures whose lungs and heart overlap, in masks of their own; some are not there."""
    masks = {name: rng.random((6, 16, 16)) < 0.5 for name in ("heart", "lung")}
    masks["heart"][2] = False
    for part, numbers in (("train", range(4)), ("test", range(4, 6))):
        root = tmp_path / "raw" / part
        for kind in ("images", "masks/heart", "masks/lung"):
            (root / kind).mkdir(parents=True)
        for number in numbers:
            picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8))
            picture.save(root / "images" / f"{number}.png")
            for name, of_class in masks.items():
                if of_class[number].any():
                    mask = Image.fromarray(of_class[number].astype(np.uint8) * 255)
                    mask.save(root / "masks" / name / f"{number}_mask.png")
    return tmp_path / "raw", masks


def test_a_folder_of_masks_for_each_class(a_folder_a_class):
    root, masks = a_folder_a_class
    split = Split(prepared(root), "all")
    assert split.info.classes == ("background", "heart", "lung")
    assert split.info.labels == Labels(2, overlapping=True)
    assert sorted(split.cases) == list("012345")
    for case in split.cases:
        label = split.volume(case).label[0]
        for number, name in enumerate(masks, start=1):
            np.testing.assert_array_equal(
                split.info.labels.mask(label, number), masks[name][int(case)]
            )
    (root / "classes.txt").write_text("background\nlung\nheart\n")
    assert Split(prepared(root), "train").info.classes == ("background", "lung", "heart")

    (root / "classes.txt").write_text("background\nlung\nliver\n")
    with pytest.raises(DataError, match=r"masks/heart: masks of no class; known are lung, liver"):
        prepared(root)
    (root / "classes.txt").unlink()
    (root / "test/masks/lung/5_mask.png").unlink()
    (root / "test/masks/heart/5_mask.png").rename(root / "test/masks/heart/7.png")
    with pytest.raises(DataError, match=r"5\.png: no mask of that name"):
        prepared(root)


def test_what_one_mask_does_not_know_counts_for_no_class(a_folder_a_class):
    root, masks = a_folder_a_class
    path = root / "train/masks/lung/0_mask.png"
    mask = np.array(Image.open(path))
    mask[:4] = 99
    Image.fromarray(mask).save(path)
    split = Split(prepared(root, ignore_label=99), "train")
    labels, label = split.info.labels, split.volume("0").label[0]
    assert labels == Labels(2, overlapping=True, ignore=True)
    assert not labels.valid(label)[:4].any()
    assert labels.valid(label)[4:].all()
    np.testing.assert_array_equal(labels.mask(label, 1)[4:], masks["heart"][0, 4:])
