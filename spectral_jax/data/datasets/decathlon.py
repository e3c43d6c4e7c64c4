"""Any task of the Medical Segmentation Decathlon: `dataset.json` and the NIfTI files it lists.

The folders of nnU-Net 1 are read too, whose images are named `case_0000.nii.gz`, and those of
nnU-Net 2 (`channel_names`, no list), for which the data set `nnunet` is made. Labels of the
official test part are secret, so the training part is split by case.

Several modalities are the channels of an image; `channel` takes one of them, by number or name. CT
is scaled by its window, all else by percentiles; `intensity` names another rule of
`spectral_jax.data.volumes`, or one for each channel. Classes must be numbered 0, 1, 2, ... without
a gap; `renumber=True` closes gaps and keeps the order.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from spectral_jax.data.datasets import files, tasks
from spectral_jax.data.datasets.dataset import Dataset, Found
from spectral_jax.data.datasets.tasks import EVERY_CHANNEL, Listed, Task
from spectral_jax.data.volumes import DataError

OFFICIAL = {  # training cases
    "Task01": 484,
    "Task02": 20,
    "Task03": 131,
    "Task04": 260,
    "Task05": 32,
    "Task06": 63,
    "Task07": 281,
    "Task08": 303,
    "Task09": 41,
    "Task10": 126,
}


def read(
    root: Path,
    channel: int | str = EVERY_CHANNEL,
    intensity: Sequence[str] = (),
    renumber: bool = False,
) -> Found:
    """Finds the training cases of a task."""
    task = tasks.read_task(root, renumber)
    listed = _listed(task)
    there = _those_there(listed, task.file)
    found = tasks.find_volumes(task, {"all": there}, channel, intensity)
    return found._replace(official=OFFICIAL.get(root.name[:6], len(listed)))


def _listed(task: Task) -> list[Listed]:
    """The cases that are listed, or, where none are, those in `imagesTr` and `labelsTr`."""
    if "training" not in task.values and "dataset" not in task.values:
        ending = task.values.get("file_ending", ".nii.gz")
        if ending not in (".nii.gz", ".nii"):
            raise DataError(
                f"{task.file}: file_ending is {ending!r}; this reader takes NIfTI files, .nii.gz "
                "or .nii; nnU-Net's pictures are read by the data set 'nnunet'"
            )
        return tasks.listed_in_folders(task, "Tr", ending)
    root, count = task.file.parent, len(task.channels)
    listed = []
    for images, of_label in _entries(task):
        found = [_find(root, image) for image in images]
        label = _find(root, of_label)
        name = files.nifti_name(found[0])
        if len(found) == 1 and not found[0].is_file():  # nnU-Net's files, listed without numbers
            numbered = [
                found[0].with_name(f"{name}_{number:04d}{found[0].name[len(name) :]}")
                for number in range(count)
            ]
            found = numbered if numbered[0].is_file() else found
        elif len(found) > 1:
            name = files.nifti_name(label)
        if len(found) not in (1, count):
            raise DataError(
                f"{task.file}: {len(found)} images for the case {name!r}, but {count} modalities"
            )
        listed.append(Listed(name, tuple(found), label))
    return listed


def _entries(task: Task) -> list[tuple[list[str], str]]:
    """Images and label of each case, as they are written."""
    listed = task.values.get("training") or task.values.get("dataset") or []
    listed = list(listed.values()) if isinstance(listed, dict) else listed
    entries = []
    for entry in listed if isinstance(listed, list) else [listed]:
        fields = entry if isinstance(entry, dict) else {}
        images, label = fields.get("image") or fields.get("images"), fields.get("label")
        images = [images] if isinstance(images, str) else images
        texts: list[Any] = [*images, label] if isinstance(images, list) else [images, label]
        if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise DataError(
                f"{task.file}: the case {entry!r} is not listed as expected: "
                '{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}'
            )
        entries.append((texts[:-1], texts[-1]))
    return entries


def _find(root: Path, listed: str) -> Path:
    """A file that is listed; Windows' and other machines' paths are those of the last folder."""
    text = listed.replace("\\", "/")
    path = root / text
    moved = root.joinpath(*PurePosixPath(text).parts[-2:])
    return moved if not path.is_file() and moved.is_file() else path


def _those_there(listed: Sequence[Listed], description: Path) -> list[Listed]:
    """The listed cases of which there are files; of a part of a set, the others are missing."""
    there = []
    missing: list[Path] = []
    for case in listed:
        absent = [path for path in (*case.images, case.label) if not path.is_file()]
        if len(absent) <= len(case.images):
            there.append(case)
            missing += absent
    if missing:
        raise DataError(
            f"{missing[0]}: no such file, but {description.name} lists it"
            f"{files.and_others(missing)}"
        )
    if listed and not there:
        raise DataError(
            f"{description}: none of the {len(listed)} cases that it lists is there; the first is "
            f"{listed[0].images[0]}: no such file"
        )
    return there


DATASET = Dataset(
    name="decathlon",
    description="Any task of the Medical Segmentation Decathlon, or of nnU-Net.",
    modality="CT or MRI, by task",
    channels=1,
    classes=None,
    licence="CC BY-SA 4.0",
    source="medicaldecathlon.com: unpack a task, FOLDER/{dataset.json,imagesTr,labelsTr}.",
    read=read,
    intensity="mri_percentile",
    test="a fifth of the labelled cases (ours)",
)
