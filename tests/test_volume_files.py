"""NIfTI sets as people have them; each situation with the public thread that it comes from."""

import dataclasses
import json
import pathlib

import nibabel
import numpy as np
import pytest
from raw_data import write_series
from test_geometry import stored_as
from test_inference_cases import GREY, trained

from spectral_jax.data.datasets import DATASETS, prepare
from spectral_jax.data.datasets.builder import find_prepared
from spectral_jax.data.sources import Split, Volume
from spectral_jax.data.volumes import BLANK, DataError, ct_window, mri_percentile
from spectral_jax.evaluation.cases import MatchedCases
from spectral_jax.inference.cases import find_sources, predict_sources
from spectral_jax.inference.formats import read_scan
from spectral_jax.inference.predictor import Predictor

CASES = ("a", "b", "c")
AFFINE = np.array([[1.0, 0, 0, 3], [0, 1, 0, -4], [0, 0, 1, 5], [0, 0, 0, 1]])
LABELS = {"0": "background", "1": "liver", "2": "spleen"}


def scan_of(name: str, shape=(6, 7, 5)) -> np.ndarray:
    return np.random.default_rng(ord(name[-1])).normal(0, 300, shape).round().astype(np.int16)


def truth_of(name: str, shape=(6, 7, 5)) -> np.ndarray:
    return np.random.default_rng(1000 + ord(name[-1])).integers(0, 3, shape).astype(np.uint8)


@dataclasses.dataclass
class Raw:
    """A folder of the Decathlon's layout, whose parts a test replaces."""

    root: pathlib.Path
    names: tuple[str, ...] = CASES
    suffix: str = ""
    modality: dict = dataclasses.field(default_factory=lambda: {"0": "MRI"})
    labels: dict = dataclasses.field(default_factory=lambda: dict(LABELS))
    image: staticmethod = lambda name: nibabel.Nifti1Image(scan_of(name), AFFINE)
    label: staticmethod = lambda name: nibabel.Nifti1Image(truth_of(name), AFFINE)
    listed: str = "./{folder}/{file}"
    description: dict | None = None
    encoding: str = "utf-8"

    def write(self) -> pathlib.Path:
        training = []
        for name in self.names:
            entry = {}
            for kind, make, suffix in (
                ("image", self.image, self.suffix),
                ("label", self.label, ""),
            ):
                path = self.root / f"{kind}sTr/{name}{suffix}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                nibabel.save(make(name), path)
                entry[kind] = self.listed.format(folder=path.parent.name, file=f"{name}.nii.gz")
            training.append(entry)
        task = {"modality": self.modality, "labels": self.labels, "training": training}
        text = json.dumps(self.description or task)
        (self.root / "dataset.json").write_text(text, encoding=self.encoding)
        return self.root


def prepared(raw: Raw, tmp_path, **options) -> tuple[dict[str, Volume], list[str], Split]:
    """The cases, what was remarked, and the set."""
    folder = prepare(
        DATASETS["decathlon"], root=raw.write(), data_dir=tmp_path / "prepared", **options
    )
    everything = Split(folder, "all")
    remarks = json.loads((folder / "summary.json").read_text())["remarks"]
    return {name: everything.volume(name) for name in everything.cases}, remarks, everything


def said(remarks: list[str], text: str) -> bool:
    return any(text in remark for remark in remarks)


def as_it_is(name: str) -> np.ndarray:
    return truth_of(name).transpose(2, 1, 0)


def check_labels(volumes: dict[str, Volume], names=CASES) -> None:
    assert set(volumes) == set(names)
    for name, volume in volumes.items():
        np.testing.assert_array_equal(volume.label, as_it_is(name))
        np.testing.assert_array_equal(
            volume.image[..., 0], mri_percentile(scan_of(name)).transpose(2, 1, 0)
        )


def test_labels_in_other_axes_than_their_images(tmp_path):
    """MIC-DKFZ/nnUNet#2526, #1157, #201."""
    raw = Raw(
        tmp_path / "raw",
        label=lambda name: stored_as(nibabel.Nifti1Image(truth_of(name), AFFINE), "LPS"),
    )
    volumes, remarks, _ = prepared(raw, tmp_path)
    check_labels(volumes)
    assert said(remarks, "the label's axes were turned to the image's axes (3 of 3 cases")


def test_labels_elsewhere_than_their_images_are_refused(tmp_path):
    """MIC-DKFZ/nnUNet#1157."""
    away = AFFINE.copy()
    away[0, 3] += 2
    raw = Raw(tmp_path / "raw", label=lambda name: nibabel.Nifti1Image(truth_of(name), away))
    message = r"labelsTr/\w\.nii\.gz: the label lies elsewhere .* 2 mm .*imagesTr/\w\.nii\.gz"
    with pytest.raises(DataError, match=message):
        prepared(raw, tmp_path)
    assert not (tmp_path / "prepared").exists()


def test_labels_with_an_identity_affine_are_used_with_a_note(tmp_path):
    """A guard: this worked, and goes on working."""
    raw = Raw(tmp_path / "raw", label=lambda name: nibabel.Nifti1Image(truth_of(name), np.eye(4)))
    volumes, remarks, _ = prepared(raw, tmp_path)
    check_labels(volumes)
    assert said(remarks, "the label's affine says no place")


def test_labels_whose_affine_is_rounded_are_used_without_a_note(tmp_path):
    """A guard: MIC-DKFZ/nnUNet#1287."""
    rounded = AFFINE + 3e-5
    raw = Raw(tmp_path / "raw", label=lambda name: nibabel.Nifti1Image(truth_of(name), rounded))
    volumes, remarks, _ = prepared(raw, tmp_path)
    check_labels(volumes)
    assert not said(remarks, "label")


def test_scans_in_several_axes_are_prepared_in_one(tmp_path):
    """wasserth/TotalSegmentator#509, #229, #78."""
    axes = dict(zip(CASES, ("RAS", "LPI", "PSR"), strict=True))

    def store(name, voxels):
        return stored_as(nibabel.Nifti1Image(voxels, AFFINE), axes[name])

    raw = Raw(
        tmp_path / "raw",
        image=lambda name: store(name, scan_of(name)),
        label=lambda name: store(name, truth_of(name)),
    )
    volumes, remarks, everything = prepared(raw, tmp_path)
    check_labels(volumes)
    assert everything.info.orientation == "RAS"
    assert said(remarks, "2 of 3 scans are stored in other axes than RAS")


def written_with_a_slope(name):
    """Class numbers stored as 0, 100, 200 with a slope of 0.01."""
    file = nibabel.Nifti1Image(truth_of(name) * np.int16(100), AFFINE)
    file.header.set_slope_inter(0.01, 0)
    return file


@pytest.mark.parametrize(
    "label",
    [
        lambda name: nibabel.Nifti1Image(truth_of(name) * np.float32(0.99995), AFFINE),
        written_with_a_slope,
    ],
    ids=["fractions", "slope"],
)
def test_almost_whole_class_numbers_are_rounded(label, tmp_path):
    """TorchIO-project/torchio#220, MIC-DKFZ/nnUNet#2868."""
    raw = Raw(tmp_path / "raw", label=label)
    volumes, _, _ = prepared(raw, tmp_path)
    check_labels(volumes)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (  # MIC-DKFZ/nnUNet#681, Project-MONAI/MONAI#7185
            lambda name: np.eye(3, dtype=np.uint8)[truth_of(name)],
            r"labelsTr/\w\.nii\.gz: the label holds 3 volumes; .*\(one-hot\).*argmax",
        ),
        (
            lambda name: truth_of(name) / np.float32(2),
            r"labelsTr/\w\.nii\.gz: the label holds the values 0\.5; expected whole numbers",
        ),
        (lambda name: truth_of(name) - np.int16(1), r"holds the values -1; expected whole"),
        (lambda name: truth_of(name) * 1j, r"voxels of type complex128; expected one real number"),
        (lambda name: truth_of(name)[..., 1:], r"the mask is 6x7x4 .*its image 6x7x5"),
    ],
)
def test_labels_that_are_no_class_numbers(label, message, tmp_path):
    raw = Raw(tmp_path / "raw", label=lambda name: nibabel.Nifti1Image(label(name), AFFINE))
    with pytest.raises(DataError, match=message):
        prepared(raw, tmp_path)


def in_colour(name):
    """FNNDSC/med2image#13, icometrix/dicom2nifti#95."""
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nibabel.Nifti1Image(np.zeros((6, 7, 5), kind), AFFINE)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (in_colour, r"imagesTr/a\.nii\.gz: voxels of type RGB; expected one real number each"),
        (
            lambda name: nibabel.Nifti1Image(scan_of(name) * 1j, AFFINE),
            r"imagesTr/a\.nii\.gz: voxels of type complex128",
        ),
        (
            lambda name: nibabel.Nifti1Image(scan_of(name, (6, 7, 5, 2)), AFFINE),
            r"imagesTr/a\.nii\.gz: holds 2 volumes, but dataset\.json names 1 modality \(MRI\)",
        ),
        (
            lambda name: nibabel.Nifti1Image(scan_of(name, (1, 1, 5)), AFFINE),
            r"5 slices of 1 x 1 pixels; expected at least 2 x 2",
        ),
    ],
)
def test_images_that_are_no_volumes(image, message, tmp_path):
    raw = Raw(
        tmp_path / "raw",
        image=image,
        label=lambda name: nibabel.Nifti1Image(truth_of(name, image(name).shape[:3]), AFFINE),
    )
    with pytest.raises(DataError, match=message):
        prepared(raw, tmp_path)


def test_one_volume_for_four_modalities(tmp_path):
    """MIC-DKFZ/nnUNet#2812: which one is it?"""
    names = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    raw = Raw(tmp_path / "raw", modality=names)
    message = (
        r"imagesTr/a\.nii\.gz: holds 1 volume, but .* names 4 modalities \(FLAIR, T1w, t1gd, T2w"
    )
    with pytest.raises(DataError, match=message):
        prepared(raw, tmp_path, channel="T1w")


def test_a_modality_is_chosen_in_any_case(tmp_path):
    raw = Raw(
        tmp_path / "raw",
        modality={"0": "T1", "1": "FLAIR"},
        image=lambda name: nibabel.Nifti1Image(
            np.stack([np.zeros((6, 7, 5), np.int16), scan_of(name)], -1), AFFINE
        ),
    )
    volumes, _, everything = prepared(raw, tmp_path, channel="flair")
    check_labels(volumes)
    assert everything.info.volume == 1


@pytest.mark.parametrize(("axis", "orientation"), [(0, "ASR"), (1, "RSA"), (2, "RAS")])
def test_single_slices_are_slices_whatever_their_axis(axis, orientation, tmp_path):
    """MIC-DKFZ/nnUNet#95, #206, alexlaurence/NIfTI-Image-Converter#15: (1, x, y) and (x, 1, z)."""

    def slice_of(voxels):
        return nibabel.Nifti1Image(np.expand_dims(voxels[..., 0], axis), AFFINE)

    raw = Raw(
        tmp_path / "raw",
        image=lambda name: slice_of(scan_of(name)),
        label=lambda name: slice_of(truth_of(name)),
    )
    volumes, _, everything = prepared(raw, tmp_path)
    assert everything.info.orientation == orientation
    for name, volume in volumes.items():
        np.testing.assert_array_equal(volume.label, truth_of(name)[..., 0].T[None])


def test_a_file_of_two_dimensions_is_a_slice(tmp_path):
    raw = Raw(
        tmp_path / "raw",
        image=lambda name: nibabel.Nifti1Image(scan_of(name)[..., 0], AFFINE),
        label=lambda name: nibabel.Nifti1Image(truth_of(name)[..., 0], AFFINE),
    )
    volumes, _, _ = prepared(raw, tmp_path)
    np.testing.assert_array_equal(volumes["a"].label, truth_of("a")[..., 0].T[None])


def test_trailing_axes_of_length_one_are_none(tmp_path):
    raw = Raw(
        tmp_path / "raw",
        image=lambda name: nibabel.Nifti1Image(scan_of(name)[..., None, None], AFFINE),
        label=lambda name: nibabel.Nifti1Image(truth_of(name)[..., None], AFFINE),
    )
    volumes, _, _ = prepared(raw, tmp_path)
    check_labels(volumes)


@pytest.mark.parametrize("modality", ["CT", "ct", "Ct scan"])
def test_ct_is_windowed_however_it_is_written(modality, tmp_path):
    """MIC-DKFZ/nnUNet#1876."""
    volumes, _, everything = prepared(Raw(tmp_path / "raw", modality={"0": modality}), tmp_path)
    assert everything.info.intensity == "ct_window"
    assert everything.info.modality.split()[0] == "CT"
    np.testing.assert_array_equal(
        volumes["a"].image[..., 0], ct_window(scan_of("a")).transpose(2, 1, 0)
    )


@pytest.mark.parametrize("image", [ct_window, lambda voxels: voxels / np.float32(300)])
def test_normalised_ct_is_refused(image, tmp_path):
    """Values of a z-score lie on both sides of 0, and none is a Hounsfield unit."""
    raw = Raw(
        tmp_path / "raw",
        modality={"0": "CT"},
        image=lambda name: nibabel.Nifti1Image(image(scan_of(name)), AFFINE),
    )
    with pytest.raises(DataError, match=r"no Hounsfield units; subtract what was added"):
        prepared(raw, tmp_path)


def test_ct_without_hounsfield_units_is_refused(tmp_path):
    """wasserth/TotalSegmentator#130, JoHof/lungmask#108, MIC-DKFZ/nnUNet#1680."""
    raw = Raw(
        tmp_path / "raw",
        modality={"0": "CT"},
        image=lambda name: nibabel.Nifti1Image(
            (scan_of(name).astype(np.int32) + 1500).astype(np.uint16), AFFINE
        ),
    )
    message = r"imagesTr/\w\.nii\.gz: no value is below 0 .*intensity=ct_window"
    with pytest.raises(DataError, match=message):
        prepared(raw, tmp_path)
    _, _, everything = prepared(raw, tmp_path, intensity="ct_window")  # as one says
    assert everything.info.intensity == "ct_window"


def turned_qform(name):
    """A scan whose qform mirrors what its sform does not."""
    file = nibabel.Nifti1Image(scan_of(name), AFFINE)
    file.header.set_qform(np.diag([-1.0, -1, 1, 1]), code=1)
    return file


def other_pixdim(name):
    file = nibabel.Nifti1Image(scan_of(name), np.diag([0.5, 0.5, 3, 1]))
    file.header["pixdim"][1:4] = 1
    return file


def no_pixdim(name):
    file = nibabel.Nifti1Image(scan_of(name), None)
    file.header.set_qform(np.eye(4), code=1)
    file.header["pixdim"][1:4] = (2, -2, 0)
    return file


@pytest.mark.parametrize(
    ("image", "note", "spacing_mm"),
    [
        (turned_qform, "sform and qform turn the scan otherwise: the sform counts", (1, 1, 1)),
        (
            other_pixdim,
            "pixdim and sform give voxels other sizes: those of the sform count",
            (3, 0.5, 0.5),
        ),
        (no_pixdim, "no size along some axis: 1 mm is taken", (1, 2, 2)),
    ],
)
def test_headers_that_contradict_themselves_are_told(image, note, spacing_mm, tmp_path):
    """Of MIC-DKFZ/nnUNet and ITK: sform against qform, sizes of 0 and below."""

    def label(name):
        truth = nibabel.Nifti1Image(truth_of(name), None, image(name).header)
        truth.set_data_dtype(np.uint8)
        return truth

    volumes, remarks, _ = prepared(Raw(tmp_path / "raw", image=image, label=label), tmp_path)
    assert said(remarks, f"{note} (3 of 3 cases")
    assert volumes["a"].spacing_mm == pytest.approx(spacing_mm)
    scan = read_scan([tmp_path / "raw/imagesTr/a.nii.gz"], orientation="RAS")
    assert any(note in text for text in scan.notes)
    assert scan.spacing_mm == pytest.approx(spacing_mm)


def test_a_scan_without_an_orientation_is_told_in_prediction_too(tmp_path):
    file = nibabel.Nifti1Image(scan_of("a"), None)
    assert not file.header["sform_code"]
    nibabel.save(file, tmp_path / "a.nii")
    assert "says nothing of the orientation" in read_scan([tmp_path / "a.nii"]).notes[0]


def test_a_scan_of_one_value_is_told(tmp_path):
    blank = nibabel.Nifti1Image(np.full((6, 7, 5), 3, np.int16), AFFINE)
    raw = Raw(
        tmp_path / "raw",
        image=lambda n: blank if n == "b" else nibabel.Nifti1Image(scan_of(n), AFFINE),
    )
    _, remarks, _ = prepared(raw, tmp_path)
    assert said(remarks, f"{BLANK} (1 of 3 cases, such as b)")
    assert read_scan([tmp_path / "raw/imagesTr/b.nii.gz"]).notes == (BLANK,)


def test_very_small_voxels_lie_somewhere(tmp_path):
    """Of microscopes, in metres."""
    nibabel.save(nibabel.Nifti1Image(scan_of("a"), np.diag([1e-6] * 3 + [1])), tmp_path / "a.nii")
    assert read_scan([tmp_path / "a.nii"]).image.shape == (5, 7, 6, 1)


def test_names_that_do_not_tell_the_compression(tmp_path):
    file = nibabel.Nifti1Image(scan_of("a"), AFFINE)
    for name, other, message in (
        ("a.nii", "b.nii.gz", r"b\.nii\.gz: .*not compressed with gzip.*rename it b\.nii$"),
        ("c.nii.gz", "d.nii", r"d\.nii: .*compressed with gzip.*rename it d\.nii\.gz$"),
    ):
        nibabel.save(file, tmp_path / name)
        (tmp_path / name).rename(tmp_path / other)
        with pytest.raises(DataError, match=message):
            read_scan([tmp_path / other])


def test_voxels_that_are_no_numbers_are_counted(tmp_path):
    voxels = scan_of("a").astype(np.float32)
    voxels[:2, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"a\.nii: 2 of 210 values are NaN or infinite; .*in their"):
        read_scan([tmp_path / "a.nii"])


@pytest.mark.parametrize("kind", [np.float64, np.int64, np.uint16, np.float32])
def test_class_numbers_of_any_type(kind, tmp_path):
    raw = Raw(
        tmp_path / "raw",
        label=lambda name: nibabel.Nifti1Image(truth_of(name).astype(kind), AFFINE, dtype=kind),
    )
    check_labels(prepared(raw, tmp_path)[0])


def test_names_in_lists_and_alone(tmp_path):
    raw = Raw(tmp_path / "raw", modality="MRI", labels=["background", "liver", "spleen"])
    volumes, _, everything = prepared(raw, tmp_path)
    check_labels(volumes)
    assert everything.info.classes == ("background", "liver", "spleen")
    assert everything.info.modality.startswith("MRI")


def test_a_list_of_no_cases_is_no_case(tmp_path):
    root = Raw(tmp_path / "raw").write()
    task = {"modality": {"0": "MRI"}, "labels": LABELS, "training": []}
    (root / "dataset.json").write_text(json.dumps(task))
    with pytest.raises(DataError, match="no case found"):
        prepare(DATASETS["decathlon"], root=root, data_dir=tmp_path / "prepared")


def test_all_files_at_fault_are_named_at_once(tmp_path):
    names = ("a", "b", "c", "d")
    raw = Raw(tmp_path / "raw", names=names)
    root = raw.write()
    (root / "imagesTr/a.nii.gz").write_bytes(b"damaged")
    nibabel.save(
        nibabel.Nifti1Image(truth_of("c") + np.uint8(9), AFFINE), root / "labelsTr/c.nii.gz"
    )
    (root / "labelsTr/d.nii.gz").unlink()
    (root / "labelsTr/d.nii.gz").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"labelsTr/d\.nii\.gz: no such file, but dataset\.json"):
        prepare(DATASETS["decathlon"], root=root, data_dir=tmp_path / "prepared")
    nibabel.save(nibabel.Nifti1Image(truth_of("d"), AFFINE * 2), root / "labelsTr/e.nii.gz")
    (root / "labelsTr/d.nii.gz").unlink()
    (root / "labelsTr/d.nii.gz").symlink_to("e.nii.gz")
    with pytest.raises(DataError) as error:
        prepare(DATASETS["decathlon"], root=root, data_dir=tmp_path / "prepared")
    lines = sorted(str(error.value).splitlines())
    for line, name in zip(lines, ("imagesTr/a", "labelsTr/c", "labelsTr/d"), strict=True):
        assert line.startswith(str(root / f"{name}.nii.gz"))


def test_names_with_dots_are_whole(tmp_path):
    """bwittmann/vesselFM#18, MIC-DKFZ/nnUNet#2868, #2187."""
    names = tuple(f"1.3.6.1.4.1.9328.50.4.{number}" for number in ("0175", "0176", "0177"))
    volumes, _, _ = prepared(Raw(tmp_path / "raw", names=names), tmp_path)
    check_labels(volumes, names)


@pytest.mark.parametrize(
    "listed",
    [
        ".\\{folder}\\{file}",  # Windows
        "{folder}/{file}",
        "/home/someone/Task900/{folder}/{file}",
        "C:\\Users\\someone\\Task900\\{folder}\\{file}",
        "Task900/{folder}/{file}",
    ],
)
def test_paths_of_other_machines_are_found_here(listed, tmp_path):
    volumes, _, _ = prepared(Raw(tmp_path / "raw", listed=listed), tmp_path)
    check_labels(volumes)


def test_a_list_of_files_that_are_elsewhere_names_the_first(tmp_path):
    raw = Raw(tmp_path / "raw", listed="images/x_{file}")
    with pytest.raises(
        DataError, match=r"none of the 3 cases .* the first is .*images/x_a\.nii\.gz"
    ):
        prepared(raw, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_description_with_a_byte_order_mark(encoding, tmp_path):
    volumes, _, _ = prepared(Raw(tmp_path / "raw", encoding=encoding), tmp_path)
    check_labels(volumes)


def test_nnunet_files_of_the_first_version(tmp_path):
    """Listed as case.nii.gz, stored as case_0000.nii.gz."""
    volumes, _, _ = prepared(Raw(tmp_path / "raw", suffix="_0000"), tmp_path)
    check_labels(volumes)


def second_version(**changes):
    labels = {"background": 0, "liver": 1, "spleen": 2}
    return {"channel_names": {"0": "MRI"}, "labels": labels, "file_ending": ".nii.gz"} | changes


def test_nnunet_folders_of_the_second_version(tmp_path):
    """MIC-DKFZ/nnUNet#1602, #2500."""
    raw = Raw(tmp_path / "raw", suffix="_0000", description=second_version(numTraining=3))
    volumes, _, everything = prepared(raw, tmp_path)
    check_labels(volumes)
    assert everything.info.classes == ("background", "liver", "spleen")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "liver": "one"}}, "'liver' has the number 'one'"),
        ({"labels": {}}, "no entries under 'labels'"),
        ({"file_ending": ".png"}, "file_ending is '.png'; this reader takes NIfTI"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, r"a_0001\.nii\.gz: no such file, but there is"),
        ({"channel_names": {"1": "T1"}}, "modalities are numbered 1; expected 0 to 0"),
    ],
)
def test_nnunet_folders_that_are_not_read_say_why(changes, message, tmp_path):
    raw = Raw(tmp_path / "raw", suffix="_0000", description=second_version(**changes))
    with pytest.raises(DataError, match=message):
        prepared(raw, tmp_path)


def test_gaps_in_class_numbers_are_named_or_closed(tmp_path):
    """MIC-DKFZ/nnUNet#1183, #309: 0, 1, 2, 4 as in BraTS."""
    raw = Raw(
        tmp_path / "raw",
        labels={"0": "background", "1": "necrosis", "4": "enhancing"},
        label=lambda name: nibabel.Nifti1Image(
            np.array([0, 1, 4], np.uint8)[truth_of(name)], AFFINE
        ),
    )
    with pytest.raises(DataError, match=r"numbered 0, 1, 4, without 2, 3; .*renumber=True"):
        prepared(raw, tmp_path)
    volumes, _, everything = prepared(raw, tmp_path, renumber=True)
    check_labels(volumes)
    assert everything.info.classes == ("background", "necrosis", "enhancing")


@pytest.mark.parametrize(
    ("label", "remark"),
    [
        (lambda name: np.zeros((6, 7, 5), np.uint8), "no mask holds liver, spleen"),
        (lambda name: np.minimum(truth_of(name), 1), "no mask holds spleen"),
    ],
)
def test_masks_without_a_class_are_remarked(label, remark, tmp_path):
    """Beckschen/TransUNet#23."""
    raw = Raw(tmp_path / "raw", label=lambda name: nibabel.Nifti1Image(label(name), AFFINE))
    _, remarks, _ = prepared(raw, tmp_path)
    assert said(remarks, remark)


def test_sets_of_an_older_version_are_to_be_prepared_again(tmp_path):
    (tmp_path / "decathlon/raw-01234567/1.2.0").mkdir(parents=True)
    message = r"is not prepared like this by this version; run spectral-jax prepare --dataset"
    with pytest.raises(DataError, match=message):
        find_prepared("decathlon", tmp_path, {})


# --- prediction -----------------------------------------------------------------------------------


@pytest.fixture
def head(rng):
    """A scan of all greys, so that a network that looks to one side sees its mirror image anew."""
    voxels = rng.integers(0, 900, (10, 12, 8)).astype(np.int16)
    return nibabel.Nifti1Image(voxels, AFFINE)


def predict(path, info, tmp_path):
    predictor = Predictor(trained(slope=0.3, info=info, image_size=16))
    sources = find_sources([path], tmp_path / "out")
    (result,) = predict_sources(predictor, info, sources)
    written = result.scan.write_labels(
        result.labels, tmp_path / "out" / result.source.name, info.classes, info.colors
    )
    return result, nibabel.as_closest_canonical(nibabel.load(written[0]))


def test_one_scan_in_any_axes_gets_one_mask(head, tmp_path):
    """wasserth/TotalSegmentator#509, #229, #78: as RAS, LAS, LPI, PSR and as a DICOM series."""
    info = dataclasses.replace(GREY, intensity="mri_percentile", orientation="RAS")
    results = {}
    for letters in ("RAS", "LAS", "LPI", "PSR"):
        nibabel.save(stored_as(head, letters), tmp_path / f"{letters}.nii.gz")
        result, mask = predict(tmp_path / f"{letters}.nii.gz", info, tmp_path)
        assert result.scan.notes == ()
        np.testing.assert_allclose(mask.affine, AFFINE, atol=1e-5)
        results[letters] = np.asarray(mask.dataobj)
    write_series(head, tmp_path / "series")
    results["dicom"] = np.asarray(predict(tmp_path / "series", info, tmp_path)[1].dataobj)
    assert results["RAS"].any()
    for mask in results.values():
        np.testing.assert_array_equal(mask, results["RAS"])
    # and the network is one that a mirror image would change
    stored = dataclasses.replace(info, orientation="")
    result, mask = predict(tmp_path / "LPI.nii.gz", stored, tmp_path)
    assert (np.asarray(mask.dataobj) != results["RAS"]).any()
    assert "does not store the orientation" in result.scan.notes[0]


def test_a_slice_seen_from_its_edge_is_refused(head, tmp_path):
    edge = nibabel.Nifti1Image(np.asarray(head.dataobj)[:1], AFFINE)
    nibabel.save(edge, tmp_path / "a.nii.gz")
    info = dataclasses.replace(GREY, intensity="mri_percentile", orientation="RAS")
    predictor = Predictor(trained(info=info, image_size=16))
    (failure,) = predict_sources(
        predictor, info, find_sources([tmp_path / "a.nii.gz"], tmp_path / "out")
    )
    assert "8 slices of 12 x 1 pixels, turned as in training (RAS)" in failure.reason


def test_ct_of_dicom_needs_its_rescaling(head, tmp_path):
    write_series(head, tmp_path / "series", modality="CT")
    info = dataclasses.replace(GREY, modality="CT", intensity="ct_window", orientation="RAS")
    predictor = Predictor(trained(info=info, image_size=16))
    sources = find_sources([tmp_path / "series"], tmp_path / "out")
    (failure,) = predict_sources(predictor, info, sources)
    assert "no RescaleIntercept" in failure.reason
    (result,) = predict_sources(predictor, info, sources, intensity="ct_window")
    assert result.labels.any()


def test_a_set_in_other_axes_is_evaluated_as_the_network_sees(tmp_path):
    """Rows run along other directions in Synapse than in the Decathlon."""
    _, _, everything = prepared(Raw(tmp_path / "raw"), tmp_path)
    ours = dataclasses.replace(everything.info, axes=(2, 0, 1), orientation="LAS")
    volume = MatchedCases(trained(info=ours), everything).volume("a")
    np.testing.assert_array_equal(volume.label, truth_of("a")[::-1].transpose(2, 0, 1))


def test_the_template_itself_is_predicted_as_it_is_trained(mni152, tmp_path):
    """Its slices run from front to back, its file's from back to front."""
    from spectral_jax.data.datasets import mni152 as template

    split = Split(mni152, "test")
    file = template.template_folder() / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    scan = read_scan([file], split.info.axes, orientation=split.info.orientation)
    np.testing.assert_array_equal(scan.image[110], split.volume("axial_110").image[0])
