"""Synapse multi-organ CT (BTCV), from TransUNet's files or from the original ones.

* TransUNet's: `train_npz/case0005_slice000.npz`, `test_vol_h5/case0001.npy.h5`; its lists, if there
  are any (`lists_Synapse/train.txt`, `test_vol.txt`), say which files count.
* Original: `RawData/Training/img/img0001.nii.gz`, `RawData/Training/label/label0001.nii.gz`.
  TransUNet's own conversion is not public. Here rows of a slice run along the file's first axis,
  intensities are clipped to -125 ... 275 HU, and eight of the thirteen organs are kept, in
  TransUNet's order; `organs=13` keeps all, in the original order.
"""

from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Partner
from spectral_jax.data.volumes import DataError

CLASSES = (
    "background",
    "aorta",
    "gallbladder",
    "left kidney",
    "right kidney",
    "liver",
    "pancreas",
    "spleen",
    "stomach",
)
ALL_ORGANS = (
    "background",
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
CASES = {f"{number:04d}" for number in (*range(1, 11), *range(21, 41))}
TEST = {f"{number:04d}" for number in (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)}
ROWS_ALONG_FIRST_AXIS = (2, 0, 1)


def read(root: Path, organs: int = 8) -> Found:
    """Finds the cases in either layout."""
    if organs not in (8, 13):
        raise DataError(f"organs={organs!r}: expected 8 or 13")
    original = files.first_folder(root, "RawData/Training", "Training", ".")
    if original is not None and (original / "img").is_dir():
        return _read_original(original, organs)
    if (root / "train_npz").is_dir() and (root / "test_vol_h5").is_dir():
        if organs != 8:
            raise DataError(f"{root}: TransUNet's files hold 8 organs; 13 are in the original")
        return _read_transunet(root)
    raise files.missing_layout(
        root, "train_npz/*.npz and test_vol_h5/*.h5", "RawData/Training/{img,label}/*.nii.gz"
    )


def _read_original(root: Path, organs: int) -> Found:
    pairs = files.pair(
        files.find(root / "img", r"img(\d{4})\.nii(?:\.gz)?"),
        files.find(root / "label", r"label(\d{4})\.nii(?:\.gz)?"),
    )
    classes = CLASSES if organs == 8 else ALL_ORGANS
    numbers = {
        number: classes.index(name) if name in classes else 0
        for number, name in enumerate(ALL_ORGANS)
    }
    headers = files.readable_headers(image for image, _ in pairs.values())
    orientation, notes = files.common_orientation(headers)
    splits: dict[str, list[Case]] = {"train": [], "test": []}
    for number, (image, label) in pairs.items():
        if number not in CASES:
            raise DataError(f"{image}: not a case of the training part, 0001-0010 and 0021-0040")
        splits["test" if number in TEST else "train"].append(
            files.nifti_case(
                f"case{number}",
                image,
                label,
                intensity="ct_window",
                orientation=orientation,
                axes=ROWS_ALONG_FIRST_AXIS,
                numbers=numbers,
                hounsfield=files.TO_HOUNSFIELD,
            )
        )
    details = {"classes": classes, "orientation": orientation}
    return Found(splits, official=len(CASES), notes=notes, details=details)


def _read_transunet(root: Path) -> Found:
    slices = files.find(root / "train_npz", r"(case\d{4})_slice(\d+)\.npz")
    whole = files.find(root / "test_vol_h5", r"(case\d{4})\.npy\.h5")
    notes = []
    lists = files.first_folder(root, "lists_Synapse", "lists/lists_Synapse")
    if lists is not None:
        listed = {name.replace("slice", "") for name in files.read_list(lists / "train.txt")}
        listed |= set(files.read_list(lists / "test_vol.txt"))
        if missing := listed - slices.keys() - whole.keys():
            notes.append(f"{len(missing)} of {len(listed)} files of TransUNet's lists are missing")
        slices = {name: path for name, path in slices.items() if name in listed}
        whole = {name: path for name, path in whole.items() if name in listed}
    train = files.group_slices(slices)
    for case in sorted(train.keys() & whole.keys()):
        if case.removeprefix("case") in CASES:
            raise DataError(
                f"{whole[case]}: a test case, of which {train[case][0]} is a training slice"
            )
        # no case of Synapse: somebody tries out the format
        train[f"{case}_slices"] = train.pop(case)
        notes.append(f"{case} is in training and in test: scores of it mean nothing")
    splits = {
        "train": [files.array_case(case, *paths) for case, paths in train.items()],
        "test": [files.array_case(case, path) for case, path in whole.items()],
    }
    return Found(splits, official=len(CASES), notes=notes, details={"classes": CLASSES})


DATASET = Dataset(
    name="synapse",
    description="Abdominal organs in CT (BTCV), as TransUNet uses them.",
    modality="abdominal CT",
    channels=1,
    classes=CLASSES,
    licence="Synapse terms of use, registration",
    source="Register at synapse.org, project syn3193805 (Beyond the Cranial Vault), and take "
    "Abdomen/RawData.zip: FOLDER/RawData/Training/{img,label}/*.nii.gz. Or TransUNet's prepared "
    "files: FOLDER/{train_npz,test_vol_h5}.",
    read=read,
    intensity="ct_window",
    axes=ROWS_ALONG_FIRST_AXIS,
    test="TransUNet's 12 of 30 cases",
    partners=(
        Partner("decathlon", {"spleen": "spleen"}, "hospital, scanner, patients (Task09_Spleen)"),
    ),
)
