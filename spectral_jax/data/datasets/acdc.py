"""ACDC cardiac cine MRI, from the official files or from those of SSL4MIS.

* Official: `patient001/Info.cfg`, which names the two annotated frames, and
  `patient001/patient001_frame01(.nii.gz|_gt.nii.gz)`.
* SSL4MIS: volumes `data/patient001_frame01.h5` and, where a volume is not there, its slices
  `data/slices/patient001_frame01_slice_1.h5`.
* Pictures: `<any folder>/images/patient001_frame01_slice_01.png` and the same in `masks`.

Patients are split 70 / 10 / 20 as in the lists of SSL4MIS, whatever the layout. A case is a frame.
"""

from collections.abc import Mapping
from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Partner
from spectral_jax.data.pictures import read_mask
from spectral_jax.data.volumes import DataError

VALIDATION = {2, 19, 28, 30, 39, 45, 78, 82, 85, 87}
TEST = {1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93}
PATIENTS = 100
FRAME = r"patient\d{3}_frame\d{2}"


def read(root: Path) -> Found:
    """Finds the cases in whichever layout."""
    notes: list[str] = []
    orientation = ""
    if infos := files.find(root, r"(?:.*/)?(patient\d{3})/Info\.cfg"):
        later = [patient for patient in infos if _number(patient) > PATIENTS]
        if later:
            notes.append(f"{len(later)} patients of the challenge's test part are left out")
        frames = {
            name: (patient, *pair)
            for patient, info in infos.items()
            if patient not in later
            for name, pair in _official_frames(patient, info).items()
        }
        headers = files.readable_headers(image for _, image, _ in frames.values())
        orientation, turned = files.common_orientation(headers)
        notes += turned
        cases = [
            files.nifti_case(
                name,
                image,
                label,
                intensity="mri_percentile",
                orientation=orientation,
                group=patient,
            )
            for name, (patient, image, label) in frames.items()
        ]
        intensity = "mri_percentile"
    elif arrays := _hdf5(root):
        cases = [files.array_case(name, *paths, group=name[:10]) for name, paths in arrays.items()]
        intensity = "unit"
    elif images := files.find(root, rf"(?:.*/)?images/({FRAME})_slice_(\d+)\.png"):
        pairs = files.pair(images, files.find(root, rf"(?:.*/)?masks/({FRAME})_slice_(\d+)\.png"))
        slices = files.group_slices(images)
        masks = files.group_slices({name: mask for name, (_, mask) in pairs.items()})
        cases = [
            files.picture_case(
                frame,
                *zip(paths, masks[frame], strict=True),
                group=frame[:10],
                read_mask=read_mask,
            )
            for frame, paths in slices.items()
        ]
        intensity = "identity"
    else:
        raise files.missing_layout(
            root, "patient001/Info.cfg", "data/*.h5 (SSL4MIS)", "{images,masks}/*_slice_*.png"
        )
    splits: dict[str, list[Case]] = {"train": [], "validation": [], "test": []}
    for case in cases:
        patient = _number(case.group)
        if not 1 <= patient <= PATIENTS:
            raise DataError(f"{case.files[0]}: no patient {patient}; they are 1 ... {PATIENTS}")
        validation = "validation" if patient in VALIDATION else "train"
        splits["test" if patient in TEST else validation].append(case)
    return Found(
        splits,
        official=2 * PATIENTS,
        notes=notes,
        details={"intensity": intensity, "orientation": orientation},
    )


def _number(patient: str) -> int:
    return int(patient.removeprefix("patient"))


def _official_frames(patient: str, info: Path) -> dict[str, files.Pair]:
    """Image and label of the two frames that are annotated."""
    lines = [line.partition(":") for line in info.read_text().splitlines()]
    values = {key.strip(): value.strip() for key, _, value in lines}
    frames = {}
    for phase in ("ED", "ES"):
        if not values.get(phase, "").isdigit():
            raise DataError(f"{info}: expected the number of a frame in a line '{phase}: ...'")
        name = f"{patient}_frame{int(values[phase]):02d}"
        image, label = (
            files.only(info.parent, f"{name}{kind}.nii.gz", f"{name}{kind}.nii")
            for kind in ("", "_gt")
        )
        frames[name] = (image, label)
    return frames


def _hdf5(root: Path) -> Mapping[str, list[Path]]:
    whole = {name: [path] for name, path in files.find(root, rf"(?:data/)?({FRAME})\.h5").items()}
    slices = files.find(root, rf"(?:data/)?slices/({FRAME})_slice_(\d+)\.h5")
    return dict(sorted((files.group_slices(slices) | whole).items()))


DATASET = Dataset(
    name="acdc",
    description="Heart chambers in cardiac cine MRI, end-diastole and end-systole.",
    modality="cardiac cine MRI",
    channels=1,
    classes=("background", "right ventricle", "myocardium", "left ventricle"),
    licence="CC BY-NC-SA 4.0",
    source="Register at humanheart-project.creatis.insa-lyon.fr (ACDC) and "
    "unpack the training part: FOLDER/patient001/{Info.cfg,*.nii.gz}. Or SSL4MIS's data/ACDC: "
    "FOLDER/data/{*.h5,slices/*.h5}.",
    read=read,
    intensity="mri_percentile",
    test="20 of 100 patients, SSL4MIS's list",
    partners=(
        Partner("sunnybrook", {"left ventricle": "left ventricle"}, "hospital, scanner, diseases"),
        Partner(
            "folder",
            {"left ventricle": "left ventricle"},
            "any set of short-axis pictures with the left ventricle alone",
        ),
    ),
)
