"""A folder of `nnUNet_raw`, as nnU-Net 2 has it: `Dataset004_Hippocampus`.

* `dataset.json`: `channel_names`, `labels` (numbers, regions of several, `ignore`), `file_ending`,
  and, where files lie elsewhere, `dataset`;
* `imagesTr/case_0000.nii.gz`, a file for each channel, and `labelsTr/case.nii.gz`; NIfTI, or
  pictures as PNG, BMP or TIFF. A picture in colour is one file, `case_0000.png`;
* `imagesTs` and `labelsTs`, where there are labels: the test split. Images alone are left out.

Folds are those of `splits_final.json`, in this folder or where nnU-Net puts it; without the file,
those that nnU-Net would make. Fold 0 is the default: what it holds out is the validation split, or,
without `labelsTs`, the test split.

`channel`, `intensity` and `renumber` are those of the data set `decathlon`. Regions overlap, and a
network gets a sigmoid for each.
"""

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from spectral_jax.data import volumes
from spectral_jax.data.datasets import files, tasks
from spectral_jax.data.datasets.dataset import Case, Dataset, Found
from spectral_jax.data.datasets.tasks import EVERY_CHANNEL, Listed, Task
from spectral_jax.data.pictures import find_kind, read_mask
from spectral_jax.data.volumes import DataError

NIFTI_ENDINGS = (".nii.gz", ".nii")
PICTURE_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
SPLITS_FILE = "splits_final.json"
PREPROCESSED = "nnUNet_preprocessed"  # a folder beside nnUNet_raw, or nnU-Net's variable
FOLDS, SHUFFLED_BY = 5, 12345  # nnU-Net's own


def read(
    root: Path,
    channel: int | str = EVERY_CHANNEL,
    intensity: Sequence[str] = (),
    renumber: bool = False,
) -> Found:
    """Finds the cases of the training and test parts."""
    inside = sorted(root.glob("Dataset*/dataset.json"))
    if inside and not (root / "dataset.json").exists():
        raise DataError(f"{root}: holds data sets; give one of them, such as {inside[0].parent}")
    task = tasks.read_task(root, renumber)
    ending = task.values.get("file_ending", ".nii.gz")
    if ending not in (*NIFTI_ENDINGS, *PICTURE_ENDINGS):
        raise DataError(
            f"{task.file}: file_ending is {ending!r}; expected one of "
            f"{', '.join((*NIFTI_ENDINGS, *PICTURE_ENDINGS))}: save the files as one of these"
        )
    if "dataset" in task.values:
        train = _listed(task)
    else:
        train = tasks.listed_in_folders(task, "Tr", ending)
    test = tasks.listed_in_folders(task, "Ts", ending) if (root / "labelsTs").is_dir() else []
    parts = {"train": train, "test": test}
    if ending in NIFTI_ENDINGS:
        found = tasks.find_volumes(task, parts, channel, intensity)
    else:
        found = _find_pictures(task, parts, channel)
    folds, note = _read_folds(root, [case.name for case in train])
    splits = found.splits if test or folds else {"all": found.splits["train"]}
    return found._replace(splits=splits, notes=(*found.notes, *note), folds=folds)


def _listed(task: Task) -> list[Listed]:
    """The training cases that `dataset.json` lists, wherever their files lie."""
    root, listed = task.file.parent, []
    entries = task.values["dataset"]
    for name, entry in entries.items() if isinstance(entries, dict) else [("", entries)]:
        fields = entry if isinstance(entry, dict) else {}
        images, label = fields.get("images"), fields.get("label")
        if not (
            isinstance(images, list)
            and isinstance(label, str)
            and all(isinstance(image, str) for image in images)
        ):
            raise DataError(
                f"{task.file}: the case {name!r} is not listed as expected: "
                '{"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}'
            )
        case = Listed(name, tuple(root / image for image in images), root / label)
        for path in (*case.images, case.label):
            if not path.is_file():
                raise DataError(f"{path}: no such file, but {task.file} lists it")
        listed.append(case)
    return listed


def _find_pictures(task: Task, parts: Mapping[str, Sequence[Listed]], channel: int | str) -> Found:
    """Cases of pictures: one in grey or colour, or grey ones for the channels."""
    if str(channel).lower() != EVERY_CHANNEL:
        raise DataError(f"{task.file}: channel={channel!r}: of pictures all channels are taken")
    kind = find_kind(path for of in parts.values() for case in of for path in case.images)
    several = any(len(case.images) > 1 for of in parts.values() for case in of)
    read_label = partial(_read_label, numbers=task.numbers)

    def make_case(case: Listed) -> Case:
        images = case.images if several else case.images[0]
        return files.picture_case(case.name, (images, case.label), read_mask=read_label)

    details = {
        **task.details,
        "modality": f"{', '.join(task.channels)} ({task.name})",
        "channels": len(task.channels) if several else kind.channels,
        "channel_names": task.channels if several else (),
        "bits": kind.bits,
        "intensity": "identity",
    }
    cases = {part: [make_case(case) for case in of] for part, of in parts.items()}
    return Found(cases, details=details)


def _read_label(path: Path, numbers: Mapping[int, int] | None) -> UInt8[np.ndarray, "height width"]:
    label = read_mask(path)
    return label if numbers is None else volumes.relabel(label, numbers, path)


def splits_files(root: Path) -> list[Path]:
    """The published folds of a folder: the first place that has them, if any."""
    preprocessed = os.environ.get(PREPROCESSED) or root.parent.parent / PREPROCESSED
    places = (root / SPLITS_FILE, Path(preprocessed) / root.name / SPLITS_FILE)
    return [place for place in places if place.is_file()][:1]


def _read_folds(root: Path, names: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """For each case the number of the fold that holds it out, and a note."""
    found = splits_files(root)
    if not found:
        if len(names) < FOLDS:
            return {}, []
        return make_folds(names), [f"no {SPLITS_FILE}: the folds are those that nnU-Net makes"]
    try:
        held_out = [fold["val"] for fold in json.loads(found[0].read_bytes())]
        folds = {name: number for number, of in reversed([*enumerate(held_out)]) for name in of}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{found[0]}: not as nnU-Net writes it ({error!r}); expected a list of folds, each "
            '{"train": [...], "val": [...]}'
        ) from error
    there = {name: folds[name] for name in names if name in folds}
    if 0 not in there.values():
        raise DataError(
            f"{found[0]}: fold 0 holds out none of the cases in {root / 'labelsTr'}; it names "
            f"{', '.join(held_out[0][:3]) if held_out else 'no fold'} ..."
        )
    missing = len(folds) - len(there)
    note = f"folds from {found[0]}" + (f"; {missing} of its cases are not there" * bool(missing))
    return there, [note]


def make_folds(names: Sequence[str]) -> dict[str, int]:
    """nnU-Net's five folds: sklearn's `KFold(5, shuffle=True, random_state=12345)` on sorted names.

    >>> make_folds(["a", "b", "c", "d", "e", "f"])["a"]
    2
    """
    order = np.arange(len(names))
    np.random.RandomState(SHUFFLED_BY).shuffle(order)
    ordered = np.sort(names)
    return {
        str(ordered[index]): fold
        for fold, of_fold in enumerate(np.array_split(order, FOLDS))
        for index in of_fold
    }


def _beside(root: Path) -> list[Path]:
    """The folds, and files that `dataset.json` lists elsewhere."""
    paths = splits_files(root)
    try:
        for entry in json.loads((root / "dataset.json").read_bytes())["dataset"].values():
            paths += [root / path for path in (*entry["images"], entry["label"])]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return paths  # nothing listed, or `read` says what is wrong
    return [path for path in paths if path.is_file()]


DATASET = Dataset(
    name="nnunet",
    description="Any data set in nnU-Net's format.",
    modality="as in the files",
    channels=1,
    classes=None,
    licence="that of the data set",
    source="Your nnUNet_raw/DatasetXXX_Name: FOLDER/{dataset.json,imagesTr,labelsTr}, and "
    "imagesTs, labelsTs if there.",
    read=read,
    beside=_beside,
    intensity="mri_percentile",
    test="labelsTs, or what fold 0 holds out",
)
