"""Any task of the Medical Segmentation Decathlon: `dataset.json` and the NIfTI files that it lists.

Labels of the official test part are secret, so the training part is split by case. Of several
modalities `channel` chooses one, by number or name. CT is scaled by its window, all else by
percentiles; `intensity` names another rule of `spectral_jax.data.volumes`.
"""

import json
from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Dataset, Found
from spectral_jax.data.volumes import INTENSITIES, DataError

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


def read(root: Path, channel: int | str = 0, intensity: str = "") -> Found:
    """Finds the training cases of a task."""
    description = root / "dataset.json"
    if not description.is_file():
        raise files.missing_layout(root, "dataset.json and the files that it lists")
    try:
        task = json.loads(description.read_text())
        modalities = [task["modality"][str(number)] for number in range(len(task["modality"]))]
        labels = [task["labels"][str(number)] for number in range(len(task["labels"]))]
        listed = [(root / entry["image"], root / entry["label"]) for entry in task["training"]]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{description}: not as the Decathlon writes it: {error!r}") from error
    number = modalities.index(channel) if channel in modalities else channel
    if not isinstance(number, int) or not 0 <= number < len(modalities):
        raise DataError(f"{description}: no channel {channel!r} among {modalities}")
    modality = modalities[number]
    rule = intensity or ("ct_window" if modality == "CT" else "mri_percentile")
    if rule not in INTENSITIES:
        raise DataError(f"intensity={rule!r}: expected one of {', '.join(INTENSITIES)}")
    cases = []
    for image, label in listed:
        if image.is_file() or label.is_file():  # with neither, the set is a part
            for path in (image, label):
                if not path.is_file():
                    raise DataError(f"{path}: no such file, but {description.name} lists it")
            name = image.name.partition(".")[0]
            cases.append(files.nifti_case(name, image, label, intensity=rule, channel=number))
    details = {
        "classes": ("background", *labels[1:]),
        "modality": f"{modality} ({task.get('name', root.name)})",
        "intensity": rule,
        "volume": number if len(modalities) > 1 else None,
    }
    official = OFFICIAL.get(root.name[:6], len(listed))
    return Found({"all": cases}, official, details=details)


DATASET = Dataset(
    name="decathlon",
    description="Any task of the Medical Segmentation Decathlon.",
    modality="CT or MRI, by task",
    channels=1,
    classes=None,
    licence="CC BY-SA 4.0",
    source="medicaldecathlon.com: unpack a task, FOLDER/{dataset.json,imagesTr,labelsTr}.",
    read=read,
    intensity="mri_percentile",
    test="a fifth of the labelled cases (ours)",
)
