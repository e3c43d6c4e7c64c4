"""GlaS colon glands: `train_1.bmp`, `train_1_anno.bmp`, ..., `testA_*`, `testB_*` and `Grade.csv`.

Glands are numbered in the annotation; they become one class, and their numbers are kept beside. The
official parts share patients (`Grade.csv` tells); they are kept as published, and the validation
pictures are taken from the training part by patient. `part` chooses testA, testB or both.
"""

import csv
from functools import partial
from pathlib import Path

import numpy as np

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded, Partner
from spectral_jax.data.pictures import read_image, read_mask
from spectral_jax.data.volumes import DataError

NAME = r"(?:train|testA|testB)_\d+"


def read(root: Path, part: str = "AB") -> Found:
    """Finds the pictures, wherever the root stands in the official tree."""
    if part not in ("A", "B", "AB"):
        raise DataError(f"part={part!r}: expected A, B or AB")
    images = files.find(root, rf"(?:.*/)?({NAME})\.bmp")
    if not images:
        raise files.missing_layout(root, "train_1.bmp, train_1_anno.bmp, ...")
    pairs = files.pair(images, files.find(root, rf"(?:.*/)?({NAME})_anno\.bmp"))
    grades = next(iter(images.values())).parent / "Grade.csv"
    patients, notes = {}, []
    if grades.is_file():
        rows = list(csv.reader(grades.read_text().splitlines()))[1:]
        patients = {row[0].strip(): row[1].strip() for row in rows if len(row) > 1}
    else:
        notes.append(f"no {grades.name}: patients are not known")
    splits: dict[str, list[Case]] = {"train": [], "test": []}
    for name, (image, label) in pairs.items():
        origin = name.partition("_")[0]
        # a patient within a part: the parts themselves share patients
        group = f"{origin}_patient_{patients[name]}" if name in patients else name
        if origin == "train" or origin.removeprefix("test") in part:
            case = Case(name, (image, label), partial(_load, image, label), group)
            splits["train" if origin == "train" else "test"].append(case)
    return Found(splits, official=85 + 60 * ("A" in part) + 20 * ("B" in part), notes=notes)


def _load(image_path: Path, label_path: Path) -> Loaded:
    image, glands = read_image(image_path), read_mask(label_path)
    files.check_size(image[..., 0], image_path, glands, label_path)
    merged = (glands > 0).astype(np.uint8)
    numbered = not np.isin(glands, (0, 255)).all()
    return Loaded(
        image[None], merged[None], instances=glands.astype(np.uint16) if numbered else None
    )


DATASET = Dataset(
    name="glas",
    description="Glands in colon histology (Warwick-QU).",
    modality="H&E histology",
    channels=3,
    classes=("background", "gland"),
    licence="research, non-commercial",
    source="warwick.ac.uk/tia (GlaS challenge): FOLDER/Warwick QU Dataset (Released 2016_07_08)/*.",
    read=read,
    test="testA and testB (60 + 20)",
    partners=(Partner("folder", {"gland": "gland"}, "other laboratories, such as CRAG"),),
)
