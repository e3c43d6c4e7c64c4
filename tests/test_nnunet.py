"""nnU-Net's folders: names, endings, regions, the ignore label, folds."""

import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import KFold

from spectral_jax.data.datasets import DATASETS, DataError, prepare
from spectral_jax.data.datasets.nnunet import make_folds
from spectral_jax.data.sources import Split
from spectral_jax.data.volumes import mri_percentile

NAMES = tuple(f"case_{letter}" for letter in "abcdefg")
LABELS = {"background": 0, "liver": 1, "spleen": 2}


def scan_of(name, channel=0):
    return np.random.default_rng([ord(name[-1]), channel]).normal(0, 300, (6, 7, 5)).round()


def truth_of(name):
    return np.random.default_rng(1000 + ord(name[-1])).integers(0, 3, (6, 7, 5)).astype(np.uint8)


def write(root, *, channels=("MRI",), labels=LABELS, truth=truth_of, tr=NAMES, ts=(), **said):
    for part, names in (("Tr", tr), ("Ts", ts)):
        for name in names:
            for kind in ("images", "labels"):
                (root / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            for channel in range(len(channels)):
                path = root / f"images{part}/{name}_{channel:04d}.nii.gz"
                nibabel.save(nibabel.Nifti1Image(scan_of(name, channel), np.eye(4)), path)
            label = nibabel.Nifti1Image(truth(name), np.eye(4))
            nibabel.save(label, root / f"labels{part}/{name}.nii.gz")
    named = {str(number): name for number, name in enumerate(channels)}
    description = {"channel_names": named, "labels": labels, "file_ending": ".nii.gz"} | said
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture
def root(tmp_path):
    return tmp_path / "nnUNet_raw/Dataset001_Test"


def prepared(root, **options):
    return prepare(DATASETS["nnunet"], root=root, data_dir=root.parents[1] / "data", **options)


def cases(folder):
    splits = ("train", "validation", "test")
    return {name: set(Split(folder, name).cases) for name in splits}


def test_cases_channels_and_labels(root):
    folder = prepared(write(root, channels=("T1", "FLAIR")))
    everything = Split(folder, "all")
    info = everything.info
    assert info.classes == ("background", "liver", "spleen")
    assert (info.channels, info.channel_names) == (2, ("T1", "FLAIR"))
    assert info.intensity == ("mri_percentile", "mri_percentile")
    assert set(everything.cases) == set(NAMES)
    for name in NAMES:
        volume = everything.volume(name)
        np.testing.assert_array_equal(volume.label, truth_of(name).T)
        for channel in range(2):
            expected = mri_percentile(scan_of(name, channel)).T
            np.testing.assert_array_equal(volume.image[..., channel], expected)


def test_one_of_several_channels(root):
    write(root, channels=("T1", "FLAIR"))
    everything = Split(prepared(root, channel="flair"), "all")
    assert (everything.info.channels, everything.info.channel_names) == (1, ())
    expected = mri_percentile(scan_of(NAMES[0], 1)).T
    np.testing.assert_array_equal(everything.volume(NAMES[0]).image[..., 0], expected)


def test_each_channel_has_its_own_rule(root):
    """PET and CT: the one by its window, the other by percentiles; or as one says."""
    write(root, channels=("CT", "PET"))
    everything = Split(prepared(root), "all")
    assert everything.info.intensity == ("ct_window", "mri_percentile")
    image = everything.volume(NAMES[0]).image
    window = (np.clip(scan_of(NAMES[0]).T, -125, 275) + 125) / 400
    np.testing.assert_allclose(image[..., 0] / 65535, window, atol=1e-5)
    np.testing.assert_array_equal(image[..., 1], mri_percentile(scan_of(NAMES[0], 1)).T)
    same = Split(prepared(root, intensity=("mri_percentile",)), "all")
    assert same.info.intensity == ("mri_percentile",) * 2
    with pytest.raises(DataError, match="or one for each channel, CT, PET"):
        prepared(root, intensity="unit,unit,unit")


def test_regions_and_the_ignore_label(root):
    """BraTS' regions, and 4 for what nobody drew."""
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}

    def truth(name):
        return (truth_of(name) + (scan_of(name) > 0) * np.uint8(2)).astype(np.uint8)

    write(root, labels=labels, truth=truth, regions_class_order=[1, 2, 3])
    everything = Split(prepared(root), "all")
    assert everything.info.classes == ("background", "whole", "core", "enhancing")
    assert everything.info.overlapping
    assert everything.info.ignore
    coding = everything.info.labels
    for name in NAMES[:2]:
        stored, raw = everything.volume(name).label, truth(name).T
        assert set(np.unique(raw)) == {0, 1, 2, 3, 4}
        np.testing.assert_array_equal(coding.valid(stored), raw != 4)
        for number, members in enumerate(([1, 2, 3], [2, 3], [3]), start=1):
            np.testing.assert_array_equal(coding.mask(stored, number), np.isin(raw, members))


def test_the_ignore_label_beside_classes(root):
    write(root, labels={**LABELS, "ignore": 3}, truth=lambda name: truth_of(name) + np.uint8(1))
    everything = Split(prepared(root), "all")
    assert everything.info.classes == ("background", "liver", "spleen")
    stored = everything.volume(NAMES[0]).label
    np.testing.assert_array_equal(stored == 255, truth_of(NAMES[0]).T == 2)


def test_class_numbers_with_a_gap_are_closed_up(root):
    labels = {"background": 0, "liver": 1, "spleen": 4, "ignore": 5}
    table = np.array([0, 1, 4, 5], np.uint8)
    write(root, labels=labels, truth=lambda name: table[truth_of(name) + (scan_of(name) > 400)])
    with pytest.raises(DataError, match="numbered 0, 1, 4, without 2, 3"):
        prepared(root)
    everything = Split(prepared(root, renumber=True), "all")
    raw = truth_of(NAMES[0]) + (scan_of(NAMES[0]) > 400)
    stored = everything.volume(NAMES[0]).label
    np.testing.assert_array_equal(stored, np.array([0, 1, 2, 255])[raw].T)


# --- folds ----------------------------------------------------------------------------------------


def test_folds_are_those_of_nnunet():
    names = [f"x{number:03d}" for number in range(23)]
    folds = make_folds(names[::-1])
    split = KFold(n_splits=5, shuffle=True, random_state=12345).split(names)
    for number, (_, held_out) in enumerate(split):
        assert {name for name, of in folds.items() if of == number} == {names[i] for i in held_out}


def test_without_a_file_fold_0_of_nnunet_is_the_test_split(root):
    folder = prepared(write(root))
    folds = Split(folder, "all").folds
    assert folds == make_folds(NAMES)
    found = cases(folder)
    assert found["test"] == {name for name, fold in folds.items() if fold == 0}
    assert len(found["validation"]) == 1
    assert set.union(*found.values()) == set(NAMES)


@pytest.mark.parametrize("place", ["beside", "preprocessed", "variable"])
def test_published_folds(root, place, tmp_path, monkeypatch):
    held_out = [["case_c"], ["case_a", "case_b"], ["case_d", "gone"]]
    splits = [{"train": [n for n in NAMES if n not in of], "val": of} for of in held_out]
    folder = {
        "beside": root,
        "preprocessed": root.parent.parent / "nnUNet_preprocessed" / root.name,
        "variable": tmp_path / "elsewhere" / root.name,
    }[place]
    if place == "variable":
        monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "elsewhere"))
    write(root, ts=("case_x", "case_y"))
    before = prepared(root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits_final.json").write_text(json.dumps(splits))
    after = prepared(root)
    assert after != before  # a file outside of the root counts too
    split = Split(after, "train")
    assert split.folds == {"case_c": 0, "case_a": 1, "case_b": 1, "case_d": 2}
    assert cases(after) == {
        "train": set(NAMES) - {"case_c"},
        "validation": {"case_c"},
        "test": {"case_x", "case_y"},
    }
    remarks = json.loads((after / "summary.json").read_text())["remarks"]
    assert any("1 of its cases are not there" in remark for remark in remarks)


@pytest.mark.parametrize("content", ["{", "[{}]", '[{"train": [], "val": ["other"]}]', "[]"])
def test_folds_that_are_none(root, content):
    write(root)
    (root / "splits_final.json").write_text(content)
    with pytest.raises(DataError, match=r"splits_final\.json: (not as nnU-Net|fold 0 holds out)"):
        prepared(root)


# --- pictures, files elsewhere, what is wrong -----------------------------------------------------


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("kind", ["grey", "colour", "two files"])
def test_pictures(root, ending, kind, rng):
    for name in NAMES:
        for folder in ("imagesTr", "labelsTr"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (9, 8, 3)).astype(np.uint8)
        if kind == "colour":
            Image.fromarray(image).save(root / f"imagesTr/{name}_0000{ending}")
        else:
            for channel in range(1 + (kind == "two files")):
                path = root / f"imagesTr/{name}_{channel:04d}{ending}"
                Image.fromarray(image[..., channel]).save(path)
        Image.fromarray(image[..., 0] % 3).save(root / f"labelsTr/{name}{ending}")
    channels = {"grey": ["x"], "colour": ["R", "G", "B"], "two files": ["red", "green"]}[kind]
    said = {"channel_names": dict(enumerate(channels)), "labels": LABELS, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(said))
    everything = Split(prepared(root), "all")
    volume = everything.volume(NAMES[-1])
    np.testing.assert_array_equal(volume.image[0], image[..., : len(channels)])
    np.testing.assert_array_equal(volume.label[0], image[..., 0] % 3)
    names = ("red", "green") if kind == "two files" else ()
    assert everything.info.channel_names == names


def test_files_that_lie_elsewhere(root):
    """nnU-Net's key "dataset": no copy of the files is needed."""
    write(root)
    (root / "imagesTr").rename(root.parent / "scans")
    (root / "labelsTr").rename(root.parent / "truth")
    listed = {
        name: {"images": [f"../scans/{name}_0000.nii.gz"], "label": f"../truth/{name}.nii.gz"}
        for name in NAMES
    }
    description = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(description | {"dataset": listed}))
    folder = prepared(root)
    assert set(Split(folder, "all").cases) == set(NAMES)
    (root.parent / "truth/case_a.nii.gz").unlink()
    with pytest.raises(DataError, match=r"truth/case_a\.nii\.gz: no such file, but .*lists it"):
        prepared(root)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"labels": {"background": 0, "liver": "one"}}, "'liver' has the number 'one'"),
        ({"labels": {"background": 0, "liver": [1, "x"]}}, "'liver' has the number 'x'"),
        ({"labels": {"background": 0, "x": 1, "ignore": [2, 3]}}, "'ignore' has the numbers"),
        ({"labels": {"background": 0, "a/b": [1, 2]}}, "region 'a/b': expected a name"),
        ({"labels": {}}, "no entries under 'labels'"),
        ({"file_ending": ".mha"}, r"file_ending is '\.mha'; expected one of \.nii\.gz"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, r"a_0001\.nii\.gz: no such file, but there is"),
        ({"channel_names": {"1": "T1"}}, "modalities are numbered 1; expected 0 to 0"),
        ({"dataset": {"a": {"images": "a.nii.gz"}}}, "the case 'a' is not listed as expected"),
    ],
)
def test_what_is_not_understood_is_named(root, said, message):
    with pytest.raises(DataError, match=message):
        prepared(write(root, **said))


def test_the_folder_of_all_sets_is_not_one_of_them(root):
    write(root)
    with pytest.raises(DataError, match=r"nnUNet_raw: holds data sets; .*/Dataset001_Test"):
        prepare(DATASETS["nnunet"], root=root.parent, data_dir=root.parents[1] / "data")


def test_channels_of_other_grids_are_refused(root):
    write(root, channels=("T1", "T2"))
    path = root / "imagesTr/case_b_0001.nii.gz"
    away = np.eye(4)
    away[0, 3] = 2
    nibabel.save(nibabel.Nifti1Image(scan_of("case_b", 1), away), path)
    with pytest.raises(DataError, match=r"case_b_0001\.nii\.gz: lies on another grid than .*_0000"):
        prepared(root)
    # but channels in other axes are turned
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 5
    nibabel.save(nibabel.Nifti1Image(scan_of("case_b", 1)[::-1], flipped), path)
    image = Split(prepared(root), "all").volume("case_b").image
    np.testing.assert_array_equal(image[..., 1], mri_percentile(scan_of("case_b", 1)).T)
