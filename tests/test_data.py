"""From files to batches: the embedded template, folders of pictures, damaged input, order."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from spectral_jax.data import pipeline
from spectral_jax.data.datasets import DATASETS, DataError, prepare
from spectral_jax.data.pictures import read_image
from spectral_jax.data.sources import Split, TrainingSlices, resize_image, resize_label

CLASSES = ("background", "disc", "square")


def write_folder(root: pathlib.Path, rng, sizes=((20, 24), (16, 30))) -> pathlib.Path:
    """A data set of two grey pictures a split, with three classes, in an order of its own."""
    for split in ("train", "val", "test"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index, size in enumerate(sizes):
            label = np.zeros(size, np.uint8)
            label[4:9, 3:9] = 1 + index
            image = (60 * label + rng.integers(0, 50, size)).astype(np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{split}_{index}.png")
            Image.fromarray(label).save(root / split / "masks" / f"{split}_{index}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return root


@pytest.fixture
def folder(tmp_path, rng):
    return write_folder(tmp_path / "raw", rng)


def prepare_folder(root, **options):
    return prepare(DATASETS["folder"], root=root, data_dir=root.parent / "prepared", **options)


# --- what is read is what was there ---------------------------------------------------------------


def test_template_slabs_are_apart_and_hold_all_tissues(mni152):
    heights = {}
    for name in ("train", "validation", "test"):
        split = Split(mni152, name)
        assert split.info.classes == ("background", "grey matter", "white matter")
        heights[name] = [int(case.removeprefix("axial_")) for case in split.cases]
        volume = split.volume(split.cases[len(split) // 2])
        assert volume.image.shape == (1, 233, 197, 1)
        assert volume.spacing_mm == (1, 1, 1)
        assert set(np.unique(volume.label)) == {0, 1, 2}
        bright = [volume.image[..., 0][volume.label == tissue].mean() for tissue in (1, 2)]
        assert bright[0] < bright[1]  # white matter is the brighter in T1: mask and image fit
    assert min(heights["validation"]) - max(heights["train"]) > 5
    assert min(heights["test"]) - max(heights["validation"]) > 5


def test_folder_comes_back_pixel_for_pixel(folder):
    prepared = prepare_folder(folder)
    for name, source in (("train", "train"), ("validation", "val"), ("test", "test")):
        split = Split(prepared, name)
        assert split.info.classes == CLASSES
        assert list(split.cases) == [f"{source}_0", f"{source}_1"]
        for case in split.cases:
            volume = split.volume(case)
            for kind, array in (("images", volume.image[0, ..., 0]), ("masks", volume.label[0])):
                original = Image.open(folder / source / kind / f"{case}.png")
                np.testing.assert_array_equal(array, np.asarray(original))
            assert volume.spacing_mm is None
    assert prepare_folder(folder) == prepared


def test_changed_files_are_prepared_anew(folder):
    before = prepare_folder(folder)
    path = folder / "train/masks/train_0.png"
    Image.fromarray(np.zeros((20, 24), np.uint8)).save(path)
    after = prepare_folder(folder)
    assert after != before
    assert not Split(after, "train").volume("train_0").label.any()


def test_slices_are_grouped_into_volumes_by_number(tmp_path, rng):
    root = write_folder(tmp_path / "raw", rng, sizes=[(12, 14)] * 11)
    prepared = prepare_folder(
        root,
        classes=(*CLASSES, *"abcdefghi"),
        case_pattern=r"(?P<case>[a-z]+)_(?P<slice>\d+)",
    )
    volume = Split(prepared, "test").volume("test")
    assert volume.image.shape == (11, 12, 14, 1)
    assert [int(label.max()) for label in volume.label] == list(range(1, 12))  # 10 after 9


def test_pictures_of_fractions_are_refused(tmp_path):
    path = tmp_path / "image.tif"
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(path)
    with pytest.raises(DataError, match=r"image\.tif: a picture of 32-bit floats"):
        read_image(path)


@pytest.mark.parametrize(
    "kind", ["16 bit", "grey as RGB", "colour", "palette mask", "JPEG mask", "mask suffix"]
)
def test_kinds_of_pictures(folder, kind):
    options = {}
    for split in ("train", "val", "test"):
        for path in sorted((folder / split / "images").iterdir()):
            mask_path = folder / split / "masks" / path.name
            image, mask = (np.asarray(Image.open(p)) for p in (path, mask_path))
            if kind == "16 bit":
                Image.fromarray(image.astype(np.uint16) * 257).save(path)
            elif kind == "grey as RGB":
                Image.fromarray(np.stack([image] * 3, -1)).save(path)
            elif kind == "colour":
                Image.fromarray(np.stack([image, image, image // 2], -1)).save(path)
            elif kind == "palette mask":
                palette = Image.fromarray(mask).convert("P")
                palette.putdata(mask.ravel().tolist())
                palette.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
                palette.save(mask_path)
            elif kind == "JPEG mask":
                Image.fromarray((mask > 0).astype(np.uint8) * 255).save(
                    mask_path.with_suffix(".jpg"), quality=95
                )
                mask_path.unlink()
                options = {"threshold": 127, "classes": ("background", "thing")}
            else:
                mask_path.rename(mask_path.with_name(f"{path.stem}_mask.png"))
    volume = Split(prepare_folder(folder, **options), "test").volume("test_1")
    assert volume.image.shape[-1] == (3 if kind == "colour" else 1)
    assert volume.image.dtype == (np.uint16 if kind == "16 bit" else np.uint8)
    expected = np.zeros((16, 30))
    expected[4:9, 3:9] = 1 if kind == "JPEG mask" else 2
    np.testing.assert_array_equal(volume.label[0], expected)


# --- damaged input --------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def set_label(path):
    mask = np.asarray(Image.open(path)).copy()
    mask[0, 0] = 7
    Image.fromarray(mask).save(path)


DAMAGE = {
    "mask of another size": (
        lambda root: Image.new("L", (5, 5)).save(root / "train/masks/train_1.png"),
        r"train_1\.png: .*5x5.*16x30",
    ),
    "unknown label": (
        lambda root: set_label(root / "test/masks/test_0.png"),
        r"test_0\.png: .*value 7.*3 classes",
    ),
    "truncated picture": (
        lambda root: truncate(root / "val/images/val_1.png"),
        r"val_1\.png: damaged",
    ),
    "text for a picture": (
        lambda root: (root / "train/images/train_0.png").write_text("hello"),
        r"train_0\.png: damaged",
    ),
    "image without mask": (
        lambda root: (root / "train/masks/train_0.png").unlink(),
        r"train_0\.png: no mask",
    ),
    "mask without image": (
        lambda root: (root / "test/images/test_1.png").unlink(),
        r"test_1\.png: a mask without an image",
    ),
    "empty folder": (
        lambda root: [path.unlink() for path in (root / "train/images").iterdir()],
        r"train/images: no images",
    ),
    "two files for one case": (
        lambda root: Image.new("L", (24, 20)).save(root / "train/images/train_0.bmp"),
        r"train_0\.(bmp|png): (two images|no mask)",
    ),
    "one case in two splits": (
        lambda root: [
            (root / f"test/{kind}/test_0.png").rename(root / f"test/{kind}/train_0.png")
            for kind in ("images", "masks")
        ],
        r"'train_0' appears twice",
    ),
    "no class names": (
        lambda root: (root / "classes.txt").unlink(),
        r"train_1\.png: the brightest value is 2, .* name the classes in classes\.txt",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_input_is_named_and_leaves_nothing_behind(folder, damage):
    spoil, message = DAMAGE[damage]
    spoil(folder)
    with pytest.raises(DataError, match=message):
        prepare_folder(folder)
    left = [p for p in (folder.parent / "prepared").rglob("*") if p.is_file()]
    assert left == []


def test_wrong_patterns_and_roots_are_named(folder, tmp_path):
    with pytest.raises(DataError, match="no regular expression"):
        prepare_folder(folder, case_pattern="(")
    with pytest.raises(DataError, match="must name two groups"):
        prepare_folder(folder, case_pattern=".*")
    with pytest.raises(DataError, match="does not fit"):
        prepare_folder(folder, case_pattern=r"(?P<case>x)(?P<slice>\d)")
    with pytest.raises(DataError, match="no such folder"):
        prepare_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"config\.data\.root"):
        prepare(DATASETS["folder"], root="", data_dir=tmp_path)


# --- slices and batches ---------------------------------------------------------------------------


def test_resizing():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    assert resize_image(image, (8, 8)) is image
    halved = resize_image(image, (4, 4))
    assert halved.dtype == np.uint8
    assert abs(float(halved.mean()) - float(image.mean())) < 1
    label = np.kron(np.array([[0, 3], [1, 0]], np.uint8), np.ones((4, 4), np.uint8))
    np.testing.assert_array_equal(resize_label(label, (2, 2)), [[0, 3], [1, 0]])
    assert set(np.unique(resize_label(label, (7, 5)))) <= {0, 1, 3}


def batches(slices, count, **options):
    iterator = pipeline.training_batches(slices, batch_size=6, seed=3, **options)
    return [next(iterator) for _ in range(count)]


def test_batches_depend_on_seed_and_step_alone(mni152):
    slices = TrainingSlices(Split(mni152, "train"), 32)
    whole = batches(slices, 30)  # more than two epochs
    assert whole[0]["image"].shape == (6, 32, 32, 1)
    order = np.concatenate([batch["record"] for batch in whole])
    epochs = order[: 2 * len(slices)].reshape(2, len(slices))
    for epoch in epochs:
        assert sorted(epoch) == list(range(len(slices)))
    assert np.any(epochs[0] != epochs[1])
    for processes in (2, 3):
        shares = [
            batches(slices, 30, process_index=i, process_count=processes) for i in range(processes)
        ]
        for step, batch in enumerate(whole):
            for key in batch:
                together = np.concatenate([share[step][key] for share in shares])
                np.testing.assert_array_equal(together, batch[key])
    resumed = batches(slices, 5, first_step=25)
    for ours, theirs in zip(resumed, whole[25:], strict=True):
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    with pytest.raises(ValueError, match="evenly"):
        batches(slices, 1, process_count=4)
