"""Any task of the Medical Segmentation Decathlon: `dataset.json` and the NIfTI files it lists.

nnU-Net's folders are read too: images named `case_0000.nii.gz`, and the `dataset.json` of its
second version, which has `channel_names` and lists no files. Labels of the official test part are
secret, so the training part is split by case.

Of several modalities `channel` chooses one, by number or name. CT is scaled by its window, all else
by percentiles; `intensity` names another rule of `spectral_jax.data.volumes`. Classes must be
numbered 0, 1, 2, ... without a gap; `renumber=True` closes gaps and keeps the order.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from spectral_jax.data import volumes
from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Dataset, Found
from spectral_jax.data.volumes import INTENSITIES, DataError, Nifti

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


class Listed(NamedTuple):
    """A training case: one file of all modalities, or one for each; and its label."""

    name: str
    images: Sequence[Path]
    label: Path


def read(root: Path, channel: int | str = 0, intensity: str = "", renumber: bool = False) -> Found:
    """Finds the training cases of a task."""
    description = root / "dataset.json"
    if not description.is_file():
        raise files.missing_layout(root, "dataset.json and the files that it lists")
    task = _read_description(description)
    modalities = _modalities(task, description)
    number = _choose(channel, modalities, description)
    classes, numbers = _classes(task, description, renumber)
    listed = _listed(task, modalities, description)
    there = _those_there(listed, description)
    is_ct = "CT" in re.findall(r"[A-Z]+", modalities[number].upper())
    rule = intensity or ("ct_window" if is_ct else "mri_percentile")
    if rule not in INTENSITIES:
        raise DataError(f"intensity={rule!r}: expected one of {', '.join(INTENSITIES)}")
    chosen = {
        case.name: case.images[number] if len(case.images) > 1 else case.images[0] for case in there
    }
    headers = {path: volumes.open_nifti(path) for path in chosen.values()}
    several = len(modalities) > 1 and any(len(case.images) == 1 for case in there)
    _check_volumes(headers, modalities, several, description)
    orientation, notes = files.common_orientation(headers)
    cases = [
        files.nifti_case(
            case.name,
            chosen[case.name],
            case.label,
            intensity=rule,
            orientation=orientation,
            volume=number if several else None,
            numbers=numbers,
            hounsfield=rule == "ct_window" and not intensity,
        )
        for case in there
    ]
    details = {
        "classes": classes,
        "modality": f"{'CT' if is_ct else modalities[number]} ({task.get('name', root.name)})",
        "intensity": rule,
        "volume": number if several else None,
        "orientation": orientation,
    }
    official = OFFICIAL.get(root.name[:6], len(listed))
    return Found({"all": cases}, official, notes=notes, details=details)


def _read_description(description: Path) -> dict[str, Any]:
    try:
        task = json.loads(description.read_bytes())  # in whatever Unicode, with a mark or without
    except (ValueError, RecursionError) as error:
        raise DataError(f"{description}: damaged, or no JSON: {error}") from error
    if not isinstance(task, dict):
        raise DataError(f"{description}: expected an object with modality, labels and training")
    return task


def _entry(task: Mapping[str, Any], description: Path, *names: str) -> Any:
    """What stands under the first of some names that is there."""
    found = next((task[name] for name in names if name in task), None)
    if not isinstance(found, dict) or not found:
        raise DataError(
            f"{description}: no entries under {' or '.join(map(repr, names))}; it has "
            f"{', '.join(map(repr, task))}. Expected modality, labels and training as in the "
            "Decathlon, or channel_names and labels as in nnU-Net 2"
        )
    return found


def _modalities(task: Mapping[str, Any], description: Path) -> list[str]:
    """Names of the modalities, in the order of their numbers."""
    named = _entry(task, description, "modality", "channel_names")
    try:
        return [str(named[str(number)]) for number in range(len(named))]
    except KeyError as error:
        raise DataError(
            f"{description}: modalities are numbered {', '.join(named)}; expected 0 to "
            f"{len(named) - 1}: {error} is missing"
        ) from None


def _choose(channel: int | str, modalities: Sequence[str], description: Path) -> int:
    names = [name.lower() for name in modalities]
    name = str(channel).lower()
    number = names.index(name) if name in names else channel
    if not isinstance(number, int) or not 0 <= number < len(modalities):
        raise DataError(f"{description}: no channel {channel!r} among {list(modalities)}")
    return number


def _classes(
    task: Mapping[str, Any], description: Path, renumber: bool
) -> tuple[tuple[str, ...], dict[int, int] | None]:
    """Names of the classes, and the new number of each old one where they change."""
    labels = _entry(task, description, "labels")
    by_name = not all(key.strip().isdigit() for key in labels)  # as nnU-Net 2 has them
    pairs = labels.items() if by_name else ((name, key) for key, name in labels.items())
    names: dict[int, str] = {0: "background"}
    for name, number in pairs:
        if name == "ignore" or isinstance(number, list):
            what = "an ignore label" if name == "ignore" else "a region of several numbers"
            raise DataError(
                f"{description}: the label {name!r} is {what}, which this reader does not know; "
                "expected a name for each whole number"
            )
        if isinstance(number, bool) or not str(number).strip().isdigit():
            raise DataError(
                f"{description}: the label {name!r} has the number {number!r}; expected a whole "
                'number, as in {"0": "background", "1": "liver"} or {"background": 0, "liver": 1}'
            )
        if int(number):
            names[int(number)] = str(name)
    old = sorted(names)
    if old[-1] > 255:
        raise DataError(f"{description}: a class has the number {old[-1]}; expected at most 255")
    if old == list(range(len(old))):
        return tuple(names[number] for number in old), None
    if not renumber:
        missing = ", ".join(str(number) for number in range(max(old)) if number not in names)
        raise DataError(
            f"{description}: classes are numbered {', '.join(map(str, old))}, without {missing}; "
            f"expected 0 to {len(old) - 1}. --option=renumber=True (config.data.options.renumber) "
            "numbers them so, in this order; predicted masks have the new numbers"
        )
    return tuple(names[number] for number in old), {number: old.index(number) for number in old}


def _listed(task: Mapping[str, Any], modalities: Sequence[str], description: Path) -> list[Listed]:
    """The cases that are listed, or, where none are, those in `imagesTr` and `labelsTr`."""
    root = description.parent
    if "training" not in task and "dataset" not in task:
        return _in_folders(task, len(modalities), root)
    listed = []
    for images, of_label in _entries(task, description):
        found = [_find(root, image) for image in images]
        label = _find(root, of_label)
        name = files.nifti_name(found[0])
        if len(found) == 1 and not found[0].is_file():  # nnU-Net's files, listed without numbers
            numbered = [
                found[0].with_name(f"{name}_{number:04d}{found[0].name[len(name) :]}")
                for number in range(len(modalities))
            ]
            found = numbered if numbered[0].is_file() else found
        elif len(found) > 1:
            name = files.nifti_name(label)
        if len(found) not in (1, len(modalities)):
            raise DataError(
                f"{description}: {len(found)} images for the case {name!r}, but "
                f"{len(modalities)} modalities"
            )
        listed.append(Listed(name, found, label))
    return listed


def _entries(task: Mapping[str, Any], description: Path) -> list[tuple[list[str], str]]:
    """Images and label of each case, as they are written."""
    listed = task.get("training") or task["dataset"]
    listed = list(listed.values()) if isinstance(listed, dict) else listed
    entries = []
    for entry in listed if isinstance(listed, list) else [listed]:
        fields = entry if isinstance(entry, dict) else {}
        images, label = fields.get("image") or fields.get("images"), fields.get("label")
        images = [images] if isinstance(images, str) else images
        texts: list[Any] = [*images, label] if isinstance(images, list) else [images, label]
        if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise DataError(
                f"{description}: the case {entry!r} is not listed as expected: "
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


def _in_folders(task: Mapping[str, Any], modalities: int, root: Path) -> list[Listed]:
    """nnU-Net's cases: `imagesTr/case_0000.nii.gz` and `labelsTr/case.nii.gz`."""
    ending = task.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        raise DataError(
            f"{root / 'dataset.json'}: file_ending is {ending!r}; this reader takes NIfTI files, "
            ".nii.gz or .nii"
        )
    labels = files.find(root / "labelsTr", r"([^/]+)" + re.escape(ending))
    images = files.find(root / "imagesTr", r"([^/]+_\d{4})" + re.escape(ending))
    listed = []
    for name, label in labels.items():
        paths = [root / f"imagesTr/{name}_{number:04d}{ending}" for number in range(modalities)]
        for path in paths:
            if images.pop(path.name[: -len(ending)], None) is None:
                raise DataError(f"{path}: no such file, but there is the label {label}")
        listed.append(Listed(name, paths, label))
    if images:
        name, path = next(iter(images.items()))
        raise DataError(
            f"{path}: there is no label labelsTr/{name[:-5]}{ending}, or dataset.json names fewer "
            f"channels than there are files; it names {modalities}"
        )
    return listed


def _those_there(listed: Sequence[Listed], description: Path) -> list[Listed]:
    """The listed cases of which there are files; of a part of a set, the others are missing."""
    there = []
    for case in listed:
        present = [path for path in (*case.images, case.label) if path.is_file()]
        if present:
            for path in (*case.images, case.label):
                if path not in present:
                    raise DataError(f"{path}: no such file, but {description.name} lists it")
            there.append(case)
    if listed and not there:
        raise DataError(
            f"{description}: none of the {len(listed)} cases that it lists is there; the first is "
            f"{listed[0].images[0]}: no such file"
        )
    return there


def _check_volumes(
    headers: Mapping[Path, Nifti], modalities: Sequence[str], several: bool, description: Path
) -> None:
    """Raises DataError unless each file holds a volume for each modality that it should."""
    expected = len(modalities) if several else 1
    for path, header in headers.items():
        if header.volumes == expected:
            continue
        if expected > 1:
            advice = (
                "which one is it? Name only that one there, or give a file for each, named "
                f"{files.nifti_name(path)}_0000.nii.gz, ..._0001.nii.gz"
            )
        else:
            advice = "name a modality for each volume there, or keep the one that is meant"
        raise DataError(
            f"{path}: holds {header.volumes} volume{'s' * (header.volumes != 1)}, but "
            f"{description.name} names {len(modalities)} modalit"
            f"{'y' if len(modalities) == 1 else 'ies'} ({', '.join(modalities)}); {advice}"
        )


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
