"""What a `dataset.json` says, the Decathlon's or nnU-Net's, and cases made of the files it means.

Both formats name channels ("modality", "channel_names") and labels, either by number or by name. A
label of nnU-Net may be a region of several numbers, or "ignore".
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Found
from spectral_jax.data.volumes import INTENSITIES, DataError, Nifti

EVERY_CHANNEL = "all"
UNLESS_SAID = f"{files.TO_HOUNSFIELD}; if they are, say --config.data.options.intensity=ct_window"


class Task(NamedTuple):
    """What a `dataset.json` says.

    Attributes:
      file: where it says so.
      values: all of it.
      name: of the task.
      channels: names of the modalities, in order.
      classes: names, background first.
      numbers: the new number of each class number, where they change.
      regions: overlapping classes, and the class numbers of each; none if classes exclude each
        other.
      ignore_label: the number of pixels that do not count, after renumbering; None if all do.
    """

    file: Path
    values: Mapping[str, Any]
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    numbers: Mapping[int, int] | None
    regions: Mapping[str, Sequence[int]]
    ignore_label: int | None

    @property
    def details(self) -> dict[str, Any]:
        """The fields of a `Dataset` that it tells."""
        return {
            "classes": self.classes,
            "regions": self.regions,
            "ignore_label": self.ignore_label,
        }


class Listed(NamedTuple):
    """A case: one file of all channels, or one for each; and its label."""

    name: str
    images: tuple[Path, ...]
    label: Path


def read_task(root: Path, renumber: bool) -> Task:
    """Reads `dataset.json`; with `renumber`, gaps between class numbers are closed.

    Raises:
      DataError: if it is not there, damaged, or says what is not understood.
    """
    file = root / "dataset.json"
    if not file.is_file():
        raise files.missing_layout(root, "dataset.json, with imagesTr and labelsTr beside it")
    try:
        values = json.loads(file.read_bytes())  # in whatever Unicode, with a mark or without
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: damaged, or no JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{file}: expected an object with modality, labels and training")
    channels = _read_channels(values, file)
    labels = _read_labels(values, file, renumber)
    return Task(file, values, str(values.get("name", root.name)), channels, *labels)


def _entry(values: Mapping[str, Any], file: Path, *names: str) -> Any:
    """What stands under the first of some names that is there."""
    found = next((values[name] for name in names if name in values), None)
    if isinstance(found, str):
        found = [found]
    if isinstance(found, list):  # names alone, in order
        found = {str(number): name for number, name in enumerate(found)}
    if not isinstance(found, dict) or not found:
        raise DataError(
            f"{file}: no entries under {' or '.join(map(repr, names))}; it has "
            f"{', '.join(map(repr, values))}. Expected modality, labels and training as in the "
            "Decathlon, or channel_names and labels as in nnU-Net 2"
        )
    return found


def _read_channels(values: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    named = _entry(values, file, "modality", "channel_names")
    try:
        return tuple(str(named[str(number)]) for number in range(len(named)))
    except KeyError as error:
        raise DataError(
            f"{file}: modalities are numbered {', '.join(named)}; expected 0 to "
            f"{len(named) - 1}: {error} is missing"
        ) from None


def _read_labels(values: Mapping[str, Any], file: Path, renumber: bool) -> tuple[Any, ...]:
    """The fields of a `Task` from `classes` on."""
    labels = _entry(values, file, "labels")
    by_name = not all(key.strip().isdigit() for key in labels)  # as nnU-Net 2 has them
    pairs = labels.items() if by_name else ((name, key) for key, name in labels.items())
    members = [(str(name), _class_numbers(name, of, file)) for name, of in pairs]
    ignored = dict(members).get("ignore") if by_name else None
    if ignored is not None:
        members.remove(("ignore", ignored))
        if len(ignored) != 1:
            raise DataError(f"{file}: the label 'ignore' has the numbers {ignored}; expected one")
    names = {0: "background"} | {of[0]: name for name, of in members if of[0]}
    if any(isinstance(of, list) for of in labels.values()):  # regions
        alone = {of[0]: name for name, of in members if len(of) == 1}
        highest = max(number for _, of in members for number in of)
        classes = tuple(alone.get(n, f"label {n}") for n in range(1, highest + 1))
        regions = {name: [n for n in of if n] for name, of in members if any(of)}
        return ("background", *classes), None, regions, ignored and ignored[0]
    old = sorted(names)
    classes = tuple(names[number] for number in old)
    if old == list(range(len(old))):
        return classes, None, {}, ignored and ignored[0]
    if not renumber:
        missing = ", ".join(str(number) for number in range(max(old)) if number not in names)
        raise DataError(
            f"{file}: classes are numbered {', '.join(map(str, old))}, without {missing}; "
            f"expected 0 to {len(old) - 1}. --config.data.options.renumber=True numbers them so, "
            "in this order; predicted masks have the new numbers"
        )
    numbers = {number: old.index(number) for number in old}
    if ignored is None:
        return classes, numbers, {}, None
    return classes, numbers | {ignored[0]: len(old)}, {}, len(old)


def _class_numbers(name: Any, numbers: Any, file: Path) -> list[int]:
    """The numbers of a label: one, or those of a region."""
    several = numbers if isinstance(numbers, list) and numbers else [numbers]
    for number in several:
        if isinstance(number, bool) or not str(number).strip().isdigit():
            raise DataError(
                f"{file}: the label {name!r} has the number {number!r}; expected a whole "
                'number, as in {"0": "background", "1": "liver"} or {"background": 0, "liver": 1}, '
                'or several of a region, "tumor": [1, 2]'
            )
        if int(number) > 255:
            raise DataError(f"{file}: a class has the number {number}; expected at most 255")
    return [int(number) for number in several]


def listed_in_folders(task: Task, part: str, ending: str) -> list[Listed]:
    """nnU-Net's cases: `imagesTr/case_0000.nii.gz` and `labelsTr/case.nii.gz`; `part` is "Tr".

    A picture of one file may hold all channels, as colours.
    """
    root, count = task.file.parent, len(task.channels)
    images_folder, labels_folder = root / f"images{part}", root / f"labels{part}"
    labels = files.find(labels_folder, r"([^/]+)" + re.escape(ending))
    images = files.find(images_folder, r"([^/]+_\d{4})" + re.escape(ending))
    in_colour = not ending.startswith(".nii") and not any(name[-4:] != "0000" for name in images)
    listed = []
    for name, label in labels.items():
        names = [f"{name}_{number:04d}" for number in range(1 if in_colour else count)]
        for wanted in names:
            if wanted not in images:
                raise DataError(
                    f"{images_folder / (wanted + ending)}: no such file, but there is the label "
                    f"{label}"
                )
        listed.append(Listed(name, tuple(images.pop(wanted) for wanted in names), label))
    if images:
        name, path = next(iter(images.items()))
        raise DataError(
            f"{path}: there is no label {labels_folder.name}/{name[:-5]}{ending}, or dataset.json "
            f"names fewer channels than there are files; it names {count}"
        )
    return listed


def find_volumes(
    task: Task,
    splits: Mapping[str, Sequence[Listed]],
    channel: int | str,
    intensity: Sequence[str],
) -> Found:
    """Cases of NIfTI files.

    Args:
      task: their description.
      splits: which files.
      channel: the only one to take, by number or name; "all" for all.
      intensity: a rule for all channels, or one for each; none for that of the modality.
    """
    number = _choose(channel, task)
    names = task.channels if number is None else (task.channels[number],)
    rules = _choose_rules(names, intensity)
    rule = rules if len(rules) > 1 else rules[0]
    listed = [case for of_split in splits.values() for case in of_split]
    # volumes of one file
    together = len(task.channels) > 1 and any(len(case.images) == 1 for case in listed)
    chosen = {
        case.name: case.images
        if number is None or len(case.images) == 1
        else (case.images[number],)
        for case in listed
    }
    headers = files.readable_headers(path for paths in chosen.values() for path in paths)
    _check_volumes(headers, task, len(task.channels) if together else 1)
    firsts = {paths[0]: headers[paths[0]] for paths in chosen.values() if paths[0] in headers}
    orientation, notes = files.common_orientation(firsts)
    volume = number if together else None
    cases = {
        split: [
            files.nifti_case(
                case.name,
                chosen[case.name],
                case.label,
                intensity=rule,
                orientation=orientation,
                volume=volume,
                numbers=task.numbers,
                hounsfield="" if intensity else UNLESS_SAID,
            )
            for case in of_split
        ]
        for split, of_split in splits.items()
    }
    modality = ", ".join("CT" if _is_ct(name) else name for name in names)
    details = {
        **task.details,
        "modality": f"{modality} ({task.name})",
        "channels": len(names),
        "channel_names": names if len(names) > 1 else (),
        "intensity": rule,
        "volume": volume,
        "orientation": orientation,
    }
    return Found(cases, notes=notes, details=details)


def _choose(channel: int | str, task: Task) -> int | None:
    """The number of the chosen channel; None for all of several."""
    names = [name.lower() for name in task.channels]
    name = str(channel).lower()
    if name == EVERY_CHANNEL:
        return None if len(names) > 1 else 0
    number = names.index(name) if name in names else channel
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise DataError(f"{task.file}: no channel {channel!r} among {list(task.channels)}")
    return number


def _is_ct(channel: str) -> bool:
    return "CT" in re.findall(r"[A-Z]+", channel.upper())


def _choose_rules(channels: Sequence[str], intensity: Sequence[str]) -> tuple[str, ...]:
    unknown = [rule for rule in intensity if rule not in INTENSITIES]
    if unknown or len(intensity) not in (0, 1, len(channels)):
        raise DataError(
            f"intensity={', '.join(intensity)}: expected one of {', '.join(INTENSITIES)}; or one "
            f"for each channel, {', '.join(channels)}, with commas between"
        )
    by_modality = ["ct_window" if _is_ct(name) else "mri_percentile" for name in channels]
    return tuple(len(channels) * list(intensity) if len(intensity) == 1 else intensity) or tuple(
        by_modality
    )


def _check_volumes(headers: Mapping[Path, Nifti], task: Task, expected: int) -> None:
    """Raises DataError unless each file holds as many volumes as it should."""
    wrong = [path for path, header in headers.items() if header.volumes != expected]
    for path in wrong[:1]:
        count = headers[path].volumes
        if expected > 1:
            advice = (
                "which one is it? Name only that one there, or give a file for each, named "
                f"{files.nifti_name(path)}_0000.nii.gz, ..._0001.nii.gz"
            )
        else:
            advice = "name a modality for each volume there, or keep the one that is meant"
        raise DataError(
            f"{path}: holds {count} volume{'s' * (count != 1)}, but "
            f"{task.file.name} names {len(task.channels)} modalit"
            f"{'y' if len(task.channels) == 1 else 'ies'} ({', '.join(task.channels)}); {advice}"
            f"{files.and_others(wrong)}"
        )
