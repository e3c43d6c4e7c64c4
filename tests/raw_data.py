"""Raw data for tests: links to real samples, and layouts without a sample made of real voxels."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
from scipy import ndimage

TO_BTCV = {1: 1, 2: 2, 3: 3, 4: 4, 15: 5, 5: 6, 6: 7, 52: 8, 63: 9, 64: 10, 7: 11, 8: 12, 9: 13}
TRANSUNET_FROM_BTCV = {8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8}

DICOM_PATIENT = {
    "PatientID": "1",
    "PatientName": "A^B",
    "PatientBirthDate": "",
    "PatientSex": "O",
    "StudyDate": "20200101",
    "StudyTime": "120000",
    "StudyID": "1",
    "AccessionNumber": "",
    "ReferringPhysicianName": "",
    "Manufacturer": "none",
    "SeriesNumber": 1,
}
"""Patient, study and series of a DICOM file: what it must have and no test looks at."""


def link(source: Path, target: Path, pattern: str = ".*") -> Path:
    """A folder with links to some of the files of another."""
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        if path.is_file() and re.fullmatch(pattern, name):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).symlink_to(path)
    return target


def h5(path: Path, key: str) -> np.ndarray:
    with h5py.File(path) as file:
        return file[key][()]


def acdc_slices(root: Path, case: str, key: str) -> np.ndarray:
    volume = root / f"data/{case}.h5"
    if volume.exists():
        return h5(volume, key)
    count = len(list(root.glob(f"data/slices/{case}_*")))
    paths = [root / f"data/slices/{case}_slice_{k}.h5" for k in range(1, count + 1)]
    return np.stack([h5(path, key) for path in paths])


def write_synapse(shared_data: Path, root: Path, numbers=(5, 6, 1)) -> Path:
    """`RawData/Training/{img,label}/*.nii.gz`: a real CT, moved up and down for each case."""
    ct = nibabel.load(shared_data / "TotalSegmentator_CT/example_ct_sm.nii.gz")
    segmentation = nibabel.load(shared_data / "TotalSegmentator_CT/example_seg.nii.gz")
    voxels, organs = np.asarray(ct.dataobj), np.asarray(segmentation.dataobj)
    label = np.zeros_like(organs)
    for theirs, number in TO_BTCV.items():
        label[organs == theirs] = number
    for number in numbers:
        for kind, volume in (("img", voxels), ("label", label)):
            path = root / f"RawData/Training/{kind}/{kind}{number:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(np.roll(volume, number, 2), ct.affine), path)
    return root


def write_transunet(source: Path, root: Path) -> Path:
    """TransUNet's files, from the original ones."""
    (root / "train_npz").mkdir(parents=True)
    (root / "test_vol_h5").mkdir()
    for path in sorted(source.rglob("img*.nii.gz")):
        number = path.name[3:7]
        image = (np.clip(nibabel.load(path).get_fdata(), -125, 275) + 125) / 400
        original = nibabel.load(path.parents[1] / f"label/label{number}.nii.gz").get_fdata()
        label = np.zeros_like(original)
        for old, new in TRANSUNET_FROM_BTCV.items():
            label[original == old] = new
        image, label = (a.transpose(2, 0, 1).astype(np.float32) for a in (image, label))
        if number == "0001":
            with h5py.File(root / f"test_vol_h5/case{number}.npy.h5", "w") as file:
                file["image"], file["label"] = image, label
        else:
            for k in range(len(image)):
                np.savez(
                    root / f"train_npz/case{number}_slice{k:03d}.npz",
                    image=image[k],
                    label=label[k],
                )
    return root


def write_acdc(shared_data: Path, root: Path) -> Path:
    """`patient001/Info.cfg` and NIfTI, from volumes of SSL4MIS."""
    for patient in ("patient037", "patient078", "patient080"):
        (root / patient).mkdir(parents=True)
        (root / patient / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nHeight: 184.0\n")
        for theirs, ours in (("frame01", "frame01"), ("frame02", "frame12")):
            for key, suffix in (("image", ""), ("label", "_gt")):
                volume = acdc_slices(shared_data / "ACDC", f"{patient}_{theirs}", key)
                if key == "image":
                    volume = np.rint(900 * volume).astype(np.int16)
                file = nibabel.Nifti1Image(volume.transpose(2, 1, 0), np.diag((1.5, 1.5, 10, 1)))
                nibabel.save(file, root / patient / f"{patient}_{ours}{suffix}.nii.gz")
    return root


def write_nnunet(
    source: Path, root: Path, names: Sequence[str], test: Sequence[str] = (), **description: Any
) -> Path:
    """A folder of nnU-Net 2, with links to cases of a folder of the Decathlon."""
    for part, of_part in (("Tr", names), ("Ts", test)):
        for name in of_part:
            for kind, suffix in (("images", "_0000"), ("labels", "")):
                path = root / f"{kind}{part}/{name}{suffix}.nii.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.symlink_to(source / f"{kind}Tr/{name}.nii.gz")
    said = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "Anterior": 1, "Posterior": 2},
        "numTraining": len(names),
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(said | description))
    return root


def write_four_channels(source: Path, root: Path, names: Sequence[str]) -> Path:
    """A task of the Decathlon with BraTS' channels: real voxels, and three contrasts of them."""
    for kind in ("images", "labels"):
        (root / f"{kind}Tr").mkdir(parents=True)
    for name in names:
        file = nibabel.load(source / f"imagesTr/{name}.nii.gz")
        voxels = np.asarray(file.dataobj).astype(np.float32)
        contrasts = [
            voxels,
            voxels.max() - voxels,
            ndimage.gaussian_filter(voxels, 1),
            ndimage.gaussian_gradient_magnitude(voxels, 1),
        ]
        image = nibabel.Nifti1Image(np.stack(contrasts, -1), file.affine)
        nibabel.save(image, root / f"imagesTr/{name}.nii.gz")
        (root / f"labelsTr/{name}.nii.gz").symlink_to(source / f"labelsTr/{name}.nii.gz")
    task = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in names
        ],
    }
    (root / "dataset.json").write_text(json.dumps(task))
    return root


def split_channels(file: Path, folder: Path) -> list[Path]:
    """The volumes of a NIfTI file as nnU-Net's files, `case_0000.nii.gz` and so on."""
    image = nibabel.load(file)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, voxels in enumerate(np.moveaxis(np.asarray(image.dataobj), -1, 0)):
        paths.append(folder / f"{file.name.removesuffix('.nii.gz')}_{number:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), paths[-1])
    return paths


def write_series(
    file: Path | nibabel.Nifti1Image,
    folder: Path,
    modality: str = "MR",
    change: Callable[[int, Any], Any] = lambda index, dataset: dataset,
    **save: Any,
) -> np.ndarray:
    """A NIfTI file as a DICOM series, in shuffled files; returns its voxels as displayed.

    `change` gets each slice, from below, and returns it changed, or None to leave it out.
    """
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra: [dicom]")
    pytest.importorskip("highdicom", reason="DICOM needs the extra: [dicom]")
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    nifti = nibabel.load(file) if isinstance(file, Path) else file
    # columns to the left, rows to the back, slices upwards: LPS
    ras = nibabel.as_closest_canonical(nifti)
    voxels = np.rint(np.asarray(ras.dataobj)).astype(np.uint16)[::-1, ::-1].transpose(2, 1, 0)
    spacing = [float(zoom) for zoom in ras.header.get_zooms()]
    folder.mkdir(parents=True)
    common = {
        "SOPClassUID": pydicom.uid.MRImageStorage,
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "Modality": modality,
        **DICOM_PATIENT,
        "Rows": voxels.shape[1],
        "Columns": voxels.shape[2],
        "PixelSpacing": [spacing[1], spacing[0]],
        "SliceThickness": spacing[2],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
    }
    order = np.random.default_rng(0).permutation(len(voxels))
    for number, index in enumerate(order):
        dataset = pydicom.Dataset()
        for key, value in common.items():
            setattr(dataset, key, value)
        dataset.SOPInstanceUID = generate_uid()
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient = [-11.0, 7.0, 30.0 + spacing[2] * int(index)]
        dataset.PixelData = voxels[index].tobytes()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset = change(int(index), dataset)
        if dataset is not None:
            dataset.save_as(folder / f"{number:03d}.dcm", **({"enforce_file_format": True} | save))
    return voxels
