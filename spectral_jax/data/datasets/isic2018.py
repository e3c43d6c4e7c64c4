"""ISIC skin lesions: task 1 of the challenge of 2018, and those of 2017 and 2016 in its place.

The folders are those of the official archives, side by side in the root. Where two years are there,
`year` chooses.
"""

from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Partner
from spectral_jax.data.volumes import DataError

FOLDERS = {  # images and masks of each split
    2018: {
        "train": ("ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"),
        "validation": (
            "ISIC2018_Task1-2_Validation_Input",
            "ISIC2018_Task1_Validation_GroundTruth",
        ),
        "test": ("ISIC2018_Task1-2_Test_Input", "ISIC2018_Task1_Test_GroundTruth"),
    },
    2017: {
        "train": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part1_GroundTruth"),
        "validation": ("ISIC-2017_Validation_Data", "ISIC-2017_Validation_Part1_GroundTruth"),
        "test": ("ISIC-2017_Test_v2_Data", "ISIC-2017_Test_v2_Part1_GroundTruth"),
    },
    2016: {
        "train": (
            "ISBI2016_ISIC_Part1_Training_Data",
            "ISBI2016_ISIC_Part1_Training_GroundTruth",
        ),
        "test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
    },
}
OFFICIAL = {2018: 2594 + 100 + 1000, 2017: 2000 + 150 + 600, 2016: 900 + 379}


def read(root: Path, year: int = 0) -> Found:
    """Finds the pictures of each split; `year` 0 is the one that is there."""
    there = [
        known
        for known, splits in FOLDERS.items()
        if any((root / images).is_dir() for images, _ in splits.values())
    ]
    if not there:
        names = [splits["train"][0] for splits in FOLDERS.values()]
        raise files.missing_layout(root, *names)
    if year not in there and (year or len(there) > 1):
        raise DataError(f"{root}: holds {there}; choose by year=..., not {year}")
    year = year or there[0]
    splits: dict[str, list[Case]] = {}
    notes = [f"the challenge of {year}"]
    for split, (images, masks) in FOLDERS[year].items():
        if not (root / images).is_dir():
            continue
        if not (root / masks).is_dir():
            notes.append(f"no ground truth for {images}: it is left out")
            continue
        pairs = files.pair(
            files.find(root / images, r"(ISIC_\d+)\.jpe?g"),
            files.find(root / masks, r"(ISIC_\d+)_[sS]egmentation\.png"),
        )
        splits[split] = [files.picture_case(name, pair) for name, pair in pairs.items()]
    return Found(splits, official=OFFICIAL[year], notes=notes)


DATASET = Dataset(
    name="isic2018",
    description="Skin lesions in dermoscopy (ISIC 2018 task 1, or ISIC 2017, 2016).",
    modality="dermoscopy",
    channels=3,
    classes=("background", "lesion"),
    licence="CC0 (2016, 2017), CC BY-NC 4.0 (2018)",
    source="challenge.isic-archive.com/data: unpack inputs and ground truths of task 1 side by "
    "side, FOLDER/ISIC2018_Task1-2_Training_Input, FOLDER/ISIC2018_Task1_Training_GroundTruth, ...",
    read=read,
    test="the official test part",
    partners=(Partner("ph2", {"lesion": "lesion"}, "centre, dermatoscope, magnification"),),
)
