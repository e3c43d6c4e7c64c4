"""Damaged raw data: one error that names the file, and the data directory as it was before."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image
from raw_data import link, write_acdc, write_synapse, write_transunet

from spectral_jax.data.datasets import (
    DATASETS,
    Case,
    DataError,
    Dataset,
    Found,
    Loaded,
    builder,
    prepare,
)
from spectral_jax.data.sources import Split


def rewrite_nifti(path: Path, change) -> None:
    file = nibabel.load(path)
    voxels = np.asarray(file.dataobj).astype(np.float32)
    path.unlink()
    nibabel.save(nibabel.Nifti1Image(change(voxels), file.affine), path)


def rewrite_h5(path: Path, key: str, change) -> None:
    with h5py.File(path) as file:
        arrays = {name: file[name][()] for name in file}
    path.unlink()
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = change(array) if name == key else array


def truncate(path: Path) -> None:
    content = path.read_bytes()[:-200]
    path.unlink()  # the link
    path.write_bytes(content)


def replace_by_text(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text)


def first_voxel(value):
    def change(array):
        array = array.copy()
        array.flat[0] = value
        return array

    return change


def copy(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


HIPPOCAMPUS = ("decathlon", "Task04_Hippocampus", r"dataset\.json|.*_00[478]\.nii\.gz")
ACDC = ("acdc", "ACDC", r".*(patient078|patient080|patient037_frame01).*")
CVC = ("cvc_clinicdb", "CVC-ClinicDB_256", r".*/(1|26|51|80)\.jpg")
KVASIR = ("kvasir_seg", "Kvasir-SEG_256", r".*\.txt|.*/cju0[qs].*")
MONUSEG = ("monuseg", "MoNuSeg", ".*")
DRIVE = ("drive", "DRIVE", r".*/(2[12]|01)_.*")
XML = "MoNuSeg 2018 Training Data/Annotations/TCGA-B0-5710-01Z-00-DX1.xml"
A_SLICE = "data/slices/patient037_frame01_slice_3.h5"
POLYP = "cju0s690hkp960855tjuaqvv0"
OUTSIDE = (
    '<r><Region><Vertex X="1" Y="1"/><Vertex X="9" Y="1"/><Vertex X="5" Y="4000"/></Region></r>'
)

DAMAGE = {
    "missing mask": (
        KVASIR,
        lambda root: (root / f"masks/{POLYP}.jpg").unlink(),
        rf"images/{POLYP}\.jpg: there is no mask",
    ),
    "missing image": (
        CVC,
        lambda root: (root / "images/26.jpg").unlink(),
        r"masks/26\.jpg: a mask without an image",
    ),
    "missing label of a volume": (
        HIPPOCAMPUS,
        lambda root: (root / "labelsTr/hippocampus_007.nii.gz").unlink(),
        r"labelsTr/hippocampus_007\.nii\.gz: no such file",
    ),
    "truncated gzip": (
        HIPPOCAMPUS,
        lambda root: truncate(root / "imagesTr/hippocampus_007.nii.gz"),
        r"imagesTr/hippocampus_007\.nii\.gz: damaged",
    ),
    "truncated HDF5": (
        ACDC,
        lambda root: truncate(root / "data/patient080_frame02.h5"),
        r"patient080_frame02\.h5: damaged",
    ),
    "HDF5 without label": (
        ACDC,
        lambda root: rewrite_h5(root / A_SLICE, "label", lambda a: h5py.Empty("f")),
        r"slice_3\.h5: ",
    ),
    "truncated picture": (
        CVC,
        lambda root: truncate(root / "images/26.jpg"),
        r"images/26\.jpg: damaged",
    ),
    "mask of another size": (
        DRIVE,
        lambda root: replace_by_picture(root / "training/1st_manual/22_manual1.gif", (9, 9)),
        r"22_manual1\.gif: the mask is 9x9.*584x565",
    ),
    "label volume of another size": (
        HIPPOCAMPUS,
        lambda root: rewrite_nifti(root / "labelsTr/hippocampus_004.nii.gz", lambda v: v[1:]),
        r"labelsTr/hippocampus_004\.nii\.gz: the mask is 35x52x38 .*36x52x38",
    ),
    "slice of another size": (
        ACDC,
        lambda root: [
            rewrite_h5(root / A_SLICE, key, lambda a: a[:-1]) for key in ("image", "label")
        ],
        r"slice_3\.h5: .*255.*slice_1\.h5 of the same case",
    ),
    "unknown label in HDF5": (
        ACDC,
        lambda root: rewrite_h5(root / A_SLICE, "label", first_voxel(4)),
        r"slice_3\.h5: the mask holds the value 4.*4 classes",
    ),
    "unknown label in NIfTI": (
        HIPPOCAMPUS,
        lambda root: rewrite_nifti(root / "labelsTr/hippocampus_004.nii.gz", first_voxel(3)),
        r"labelsTr/hippocampus_004\.nii\.gz: the mask holds the value 3.*3 classes",
    ),
    "half a label": (
        HIPPOCAMPUS,
        lambda root: rewrite_nifti(root / "labelsTr/hippocampus_004.nii.gz", first_voxel(0.5)),
        r"labelsTr/hippocampus_004\.nii\.gz: the label holds the values 0\.5; expected whole",
    ),
    "mask that is not black and white": (
        ("chasedb1", "CHASEDB1", r"Image_0[12].*"),
        lambda root: replace_by_picture(root / "Image_02L_1stHO.png", (999, 960), 2),
        r"Image_02L_1stHO\.png: the brightest value is 2",
    ),
    "two files for one case": (
        CVC,
        lambda root: copy(root / "images/26.jpg", root / "images/26.png"),
        r"images/26\.png: a second file for '26'",
    ),
    "two files for one slice": (
        ACDC,
        lambda root: copy(
            root / A_SLICE, (root / A_SLICE).with_stem("patient037_frame01_slice_03")
        ),
        r"slice_0?3\.h5: a second file for slice 3",
    ),
    "NaN voxels in NIfTI": (
        HIPPOCAMPUS,
        lambda root: rewrite_nifti(root / "imagesTr/hippocampus_008.nii.gz", first_voxel(np.nan)),
        r"imagesTr/hippocampus_008\.nii\.gz: 1 of \d+ values are NaN",
    ),
    "NaN voxels in HDF5": (
        ACDC,
        lambda root: rewrite_h5(root / A_SLICE, "image", first_voxel(np.nan)),
        r"slice_3\.h5: 1 of \d+ values are NaN",
    ),
    "intensities that are not scaled": (
        ACDC,
        lambda root: rewrite_h5(root / A_SLICE, "image", lambda a: 300 * a),
        r"slice_3\.h5: intensities [\d.]+ \.\.\. [\d.]+; expected 0 \.\.\. 1",
    ),
    "outline outside the picture": (
        MONUSEG,
        lambda root: replace_by_text(root / XML, OUTSIDE),
        r"5710.*\.xml: outline 1 reaches .*4000, outside its picture of 1000x1000",
    ),
    "broken XML": (
        MONUSEG,
        lambda root: replace_by_text(root / XML, OUTSIDE[:-4]),
        r"5710.*\.xml: damaged, or no XML file",
    ),
    "picture in both lists": (
        KVASIR,
        lambda root: replace_by_text(
            root / "train.txt", f"{POLYP}\n" + (root / "train.txt").read_text()
        ),
        rf"images/{POLYP}\.jpg: case '{POLYP}' appears twice",
    ),
    "picture in no list": (
        KVASIR,
        lambda root: replace_by_text(root / "train.txt", ""),
        r"neither in train\.txt nor in val\.txt",
    ),
    "broken dataset.json": (
        HIPPOCAMPUS,
        lambda root: replace_by_text(root / "dataset.json", '{"labels": {}}'),
        r"dataset\.json: no entries under 'modality' or 'channel_names'; it has 'labels\'",
    ),
    "another layout": (
        ("synapse", "CHASEDB1", ".*"),
        lambda root: None,
        r"raw: expected there train_npz.*RawData/Training",
    ),
}


def replace_by_picture(path: Path, size: tuple[int, int], value: int = 0) -> None:
    path.unlink()
    Image.new("L", size, value).save(path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_input_is_named_and_leaves_nothing_behind(damage, shared_data, tmp_path):
    (name, folder, files), spoil, message = DAMAGE[damage]
    root = link(shared_data / folder, tmp_path / "raw", files)
    spoil(root)
    with pytest.raises(DataError, match=message):
        prepare(DATASETS[name], root=root, data_dir=tmp_path / "new" / "prepared")
    assert not (tmp_path / "new").exists()

    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match=message):
        prepare(DATASETS[name], root=root, data_dir=tmp_path / "used")
    assert [path.name for path in (tmp_path / "used").rglob("*")] == ["mine.txt"]


def test_damage_in_layouts_without_a_sample(shared_data, tmp_path):
    synapse = write_synapse(shared_data, tmp_path / "synapse", numbers=(5, 6, 1))
    transunet = write_transunet(synapse, tmp_path / "transunet")
    rewrite_nifti(synapse / "RawData/Training/label/label0006.nii.gz", first_voxel(14))
    acdc = write_acdc(shared_data, tmp_path / "acdc")
    (acdc / "patient078/Info.cfg").write_text("ED: 1\nES: 11\n")
    copy(
        transunet / "train_npz/case0005_slice000.npz", transunet / "train_npz/case0001_slice000.npz"
    )
    for name, root, message in (
        ("synapse", synapse, r"label0006\.nii\.gz: the label holds 14"),
        (
            "synapse",
            transunet,
            r"case0001\.npy\.h5: a test case, of which .*case0001_slice000\.npz",
        ),
        ("acdc", acdc, r"patient078_frame11\.nii\.gz: no such file"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(DATASETS[name], root=root, data_dir=tmp_path / "prepared")
        assert not (tmp_path / "prepared").exists()


def test_wrong_options_and_roots_say_what_is_right(tmp_path):
    with pytest.raises(DataError, match=r"no option 'organ'; did you mean 'organs'"):
        prepare(DATASETS["synapse"], root=tmp_path, data_dir=tmp_path, organ=13)
    with pytest.raises(DataError, match="expected 8 or 13"):
        prepare(DATASETS["synapse"], root=tmp_path, data_dir=tmp_path, organs=9)
    with pytest.raises(DataError, match=r"--raw_dir=FOLDER.*\n.*Register"):
        prepare(DATASETS["acdc"], root=None, data_dir=tmp_path)
    with pytest.raises(DataError, match=r"validation=1\.0: expected a share"):
        prepare(made_up(4), root=None, data_dir=tmp_path, validation=1)


# --- sets that are made up: interruption, company, splits -----------------------------------------


def made_up(count: int, load=None, **splits) -> Dataset:
    """A set of small pictures; two of them share a group."""

    def picture() -> Loaded:
        image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
        return Loaded(image, (image[..., 0] > 30).astype(np.uint8))

    here = Path(__file__)
    cases = [
        Case(f"case_{n}", (here,), load or picture, group=f"patient_{n // 2}") for n in range(count)
    ]
    return Dataset(
        name="made_up",
        description="",
        modality="",
        channels=1,
        classes=("background", "thing"),
        licence="",
        source="",
        read=lambda root: Found(splits or {"all": cases}),
        needs_root=False,
    )


def test_groups_stay_together_and_every_split_has_one(tmp_path):
    folder = prepare(made_up(6), root=None, data_dir=tmp_path)
    cases = {name: Split(folder, name).cases for name in ("train", "validation", "test")}
    assert sorted(case for split in cases.values() for case in split) == [
        f"case_{n}" for n in range(6)
    ]
    for split in cases.values():
        assert len(split) == 2
        assert int(split[0][5:]) // 2 == int(split[1][5:]) // 2
    with pytest.raises(DataError, match="at least two are needed"):
        prepare(made_up(2), root=None, data_dir=tmp_path / "one")


def test_records_of_many_shards_come_back_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "RECORDS_PER_SHARD", 2)
    folder = prepare(made_up(12), root=None, data_dir=tmp_path)
    split = Split(folder, "train")
    assert len(list(folder.glob("made_up-train*"))) == 4
    assert [split.case_name(record) for record in range(len(split))] == list(split.cases)
    assert list(split.cases) == sorted(split.cases, key=lambda case: int(case[5:]))
    assert len(split) == 8


def test_a_group_in_two_splits_is_refused(tmp_path):
    cases = made_up(2).read(None).splits["all"]
    parted = made_up(0, train=cases[:1], test=cases[1:])
    with pytest.raises(DataError, match="keep each patient or video in one split"):
        prepare(parted, root=None, data_dir=tmp_path)


def test_the_same_files_make_the_same_records(shared_data, tmp_path):
    root = link(shared_data / "DRIVE", tmp_path / "raw", DRIVE[2])
    contents = []
    for copy_number in range(2):
        folder = prepare(DATASETS["drive"], root=root, data_dir=tmp_path / str(copy_number))
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


@pytest.mark.parametrize("place", ["prepared", "."])
def test_prepared_sets_among_raw_files_are_no_raw_files(place, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for number in range(4):
            mask = np.full((8, 8), 255, np.uint8)
            Image.fromarray(mask).save(tmp_path / kind / f"{number}.png")
    folders = set()
    for step in range(3):
        folders.add(prepare(DATASETS["folder"], root=tmp_path, data_dir=tmp_path / place))
        (tmp_path / "runs/mine").mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "versions.json", f"step{step}"):
            (tmp_path / "runs/mine" / name).touch()
        (tmp_path / f"incomplete.{step}").mkdir()
        (tmp_path / f"incomplete.{step}/a").touch()
    assert len(folders) == 1


def test_what_a_killed_process_left_is_removed(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from test_datasets_damage import *\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(made_up(6, load=kill), root=None, data_dir=sys.argv[1])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name[:11] for path in tmp_path.iterdir()) == [".lock", "incomplete."]
    prepare(made_up(6), root=None, data_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["made_up"]


def test_processes_wait_for_each_other(tmp_path):
    reads, folders = [], []
    started, go_on = threading.Event(), threading.Event()

    def read(root) -> Found:
        reads.append(root)
        started.set()
        assert go_on.wait(20)
        return made_up(6).read(root)

    def start() -> threading.Thread:
        dataset = Dataset(**{**vars(made_up(6)), "read": read})
        thread = threading.Thread(
            target=lambda: folders.append(prepare(dataset, root=None, data_dir=tmp_path))
        )
        thread.start()
        return thread

    threads = [start()]
    assert started.wait(20)
    threads.append(start())
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert folders[0] == folders[1]
