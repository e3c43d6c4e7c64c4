"""Damaged and hostile files, made at random from sound ones: each is named, and nothing else.

`pytest tests/test_fuzz.py --fuzz=20000` tries so many of each kind; without, a few that take
seconds. A failure prints the seed, which is all that it takes to make the file again.
"""

import dataclasses
import gzip
import io
import itertools
import json
import struct
import zipfile
import zlib

import nibabel
import numpy as np
import pytest
from PIL import Image
from raw_data import DICOM_PATIENT
from test_inference_cases import GREY, trained
from test_pretrained import Storage, Tensor, save_torch

from spectral_jax import limits
from spectral_jax.data.datasets import DATASETS
from spectral_jax.inference.cases import Failure, find_sources, predict_sources
from spectral_jax.inference.predictor import Predictor
from spectral_jax.models.pretrained import read_torch
from spectral_jax.reporting import write_report
from spectral_jax.training import run
from spectral_jax.training.config import parse_config

SEED = 20240109
EXTREMES = (0, 1, -1, 2, 127, 255, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**62)
JUNK = (
    None,
    True,
    -1,
    0,
    2**70,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../x",
    [],
    {},
    [1],
    [[]],
)


@pytest.fixture
def numbers(request):
    """Numbers of inputs, as many as --fuzz says."""
    return range(request.config.getoption("--fuzz"))


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "0.05")


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes some bytes, mostly of the first ones, or how many there are."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(min(len(data), 400) if rng.random() < 0.7 else len(data)))
        match rng.integers(7):
            case 0:
                data[place] ^= 1 << rng.integers(8)
            case 1:
                data[place] = rng.integers(256)
            case 2 | 3:  # a number of some size and order
                kind = rng.choice(["<h", ">h", "<i", ">i", "<q"])
                size = struct.calcsize(kind)
                value = int(rng.choice(EXTREMES)) % 2 ** (8 * size - 1)
                value = -value - 1 if rng.random() < 0.3 else value
                place -= place % size
                data[place : place + size] = struct.pack(kind, value)[: len(data) - place]
            case 4:
                value = rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e30, 0.0])
                place -= place % 4
                data[place : place + 4] = struct.pack("<f", value)[: len(data) - place]
            case 5:
                del data[place : place + int(rng.integers(1, 50))]
            case 6:
                data[place:place] = data[: int(rng.integers(1, 50))]
        data = data or bytearray(1)
    return bytes(data)


def picture(kind, mode="L", **options):
    file = io.BytesIO()
    Image.linear_gradient("L").resize((20, 24)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png(rng):
    """A PNG whose checksums are right, so that what is wrong is found behind them."""
    content = picture("PNG", rng.choice(["L", "RGB", "RGBA", "LA", "P", "1"]))
    if rng.random() < 0.2:
        return mutate(content, rng)
    parts, place = [content[:8]], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += 12 + length
        if rng.random() < 0.4 and data:
            inner = zlib.decompress(data) if kind == b"IDAT" else data
            inner = mutate(inner, rng)
            data = zlib.compress(inner) if kind == b"IDAT" else inner
        parts += [
            struct.pack(">I", len(data)),
            kind,
            data,
            struct.pack(">I", zlib.crc32(kind + data)),
        ]
    return b"".join(parts)


def other_picture(rng):
    kind, options = [
        ("JPEG", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "jpeg"}),
    ][rng.integers(7)]
    return mutate(picture(kind, **options), rng)


def nifti(rng):
    kind = [nibabel.Nifti1Image, nibabel.Nifti2Image][rng.integers(2)]
    voxels = np.arange(5 * 6 * 7, dtype=rng.choice(["u1", "i2", "f4"])).reshape(5, 6, 7)
    return mutate(kind(voxels, np.eye(4)).to_bytes(), rng)


def nifti_gz(rng):
    if rng.random() < 0.2:
        return mutate(gzip.compress(nifti(rng)), rng)
    return gzip.compress(nifti(rng))


def npz(rng):
    inner, file = io.BytesIO(), io.BytesIO()
    np.save(inner, np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5))
    with zipfile.ZipFile(file, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as to:
        to.writestr("image.npy", mutate(inner.getvalue(), rng))
    return file.getvalue() if rng.random() < 0.7 else mutate(file.getvalue(), rng)


def dicom(rng):
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra: [dicom]")
    pytest.importorskip("highdicom", reason="DICOM needs the extra: [dicom]")
    dataset = pydicom.Dataset()
    values = {
        **DICOM_PATIENT,
        "SOPClassUID": pydicom.uid.MRImageStorage,
        "SOPInstanceUID": "1.2.3",
        "StudyInstanceUID": "1.2.4",
        "SeriesInstanceUID": "1.2.5",
        "FrameOfReferenceUID": "1.2.6",
        "Modality": "MR",
        "Rows": 9,
        "Columns": 8,
        "PixelSpacing": [1, 1],
        "SliceThickness": 1,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
    }
    for key, value in values.items():
        setattr(dataset, key, value)
    dataset.PixelData = bytes(range(72))
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    content = file.getvalue()
    return content[:128] + mutate(content[128:], rng)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ending", "make"),
    [
        (".png", png),
        (".tif", other_picture),
        (".nii", nifti),
        (".nii.gz", nifti_gz),
        (".npz", npz),
        (".dcm", dicom),
    ],
)
def test_every_case_of_a_batch_is_done_or_named(ending, make, numbers, tmp_path):
    info = dataclasses.replace(GREY, intensity="mri_percentile")
    predictor = Predictor(trained(image_size=16), batch_size=4)
    np.savez(tmp_path / "good.npz", image=np.full((2, 8, 8), 0.9))
    for some in itertools.batched(numbers, 50) if hasattr(itertools, "batched") else [numbers]:
        files = []
        for number in some:
            files.append(tmp_path / f"{number}{ending}")
            files[-1].write_bytes(make(np.random.default_rng([SEED, number])))
        sources = find_sources([*files, tmp_path / "good.npz"], tmp_path / "out")
        *results, last = predict_sources(predictor, info, sources)
        assert len(results) == len(files)
        assert last.labels.all(), "the sound case after them"
        for file, result in zip(files, results, strict=True):
            assert result.source.files == (file,)
            if isinstance(result, Failure):
                assert str(file) in result.reason
                # nothing unforeseen; but pydicom reads a value when it is asked for
                assert ending == ".dcm" or "cannot be used" not in result.reason, result.reason
                assert "not predicted" not in result.reason, result.reason
            else:
                assert result.labels.shape == result.image.shape[:3]
            file.unlink()


def attempt(read):
    """What is read, or the text of an error that a user may see."""
    try:
        return read(), ""
    except (ValueError, OSError) as error:
        return None, str(error)


def test_weights_hold_only_what_their_file_holds(numbers, tmp_path):
    """Crafted tensors: each is refused, or has exactly the values that its storage gives it."""
    refused = 0
    for number in numbers:
        rng = np.random.default_rng([SEED, number])
        values = np.arange(rng.integers(0, 13), dtype=rng.choice(["float32", "float64", "float16"]))
        size, stride, offset = (
            [
                int(rng.choice(EXTREMES)) if rng.random() < 0.1 else int(rng.integers(5))
                for _ in range(n)
            ]
            for n in (*[rng.integers(4)] * 2, 1)
        )
        storage = Storage("0", values)
        tensor = Tensor(storage, offset[0], tuple(size), tuple(stride))
        if rng.random() < 0.1:
            tensor = Tensor(tensor, 0, tuple(size), tuple(stride))
        path = save_torch(tmp_path / "crafted.pth", {"w": tensor})
        read, error = attempt(lambda path=path: read_torch(path))
        if error:
            assert str(path) in error
            refused += 1
            continue
        array = read["w"]
        assert array.shape == tuple(size)
        if not array.size:  # ndindex would list every index of the other axes
            continue
        for index in np.ndindex(*size):
            place = offset[0] + sum(i * step for i, step in zip(index, stride, strict=True))
            assert array[index] == values[place]
    assert 0 < refused < len(numbers)


def test_mutated_weights_are_read_or_named(numbers, tmp_path):
    sevens = {f"layer{n}.weight": np.full((3, n + 1), 7, np.float32) for n in range(4)}
    with zipfile.ZipFile(save_torch(tmp_path / "sound.pth", sevens)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    for number in numbers:
        rng = np.random.default_rng([SEED, number])
        path = tmp_path / "mutated.pth"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in contents.items():
                changed = mutate(content, rng) if name.endswith("data.pkl") else content
                archive.writestr(name, changed)
        if rng.random() < 0.2:
            path.write_bytes(mutate(path.read_bytes(), rng))
        read, error = attempt(lambda path=path: read_torch(path))
        assert not error or str(path) in error
        for array in (read or {}).values():
            if array is not None and array.dtype == np.float32:
                assert (array == 7).all(), number


def spoil(document: dict, rng: np.random.Generator) -> bytes:
    """JSON with a value at some place replaced, removed or added, or with other bytes."""
    if rng.random() < 0.2:
        return mutate(json.dumps(document).encode(), rng)
    document = json.loads(json.dumps(document))
    at = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            break
        key = keys[rng.integers(len(keys))]
        if isinstance(at[key], dict | list) and rng.random() < 0.8:
            at = at[key]
            continue
        if rng.random() < 0.2:
            del at[key]
        else:
            at[key] = JUNK[rng.integers(len(JUNK))]
        break
    if rng.random() < 0.05:
        return b'{"a":' * 100_000
    return json.dumps(document).encode()


def check_json(file, document, read, numbers):
    for number in numbers:
        file.write_bytes(spoil(document, np.random.default_rng([SEED, number])))
        _, error = attempt(read)
        assert not error or file.name in error, f"{number}: {file.read_bytes()[:300]!r}: {error}"


def test_a_decathlon_description_is_read_or_named(numbers, tmp_path):
    description = {
        "name": "x",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "training": [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"
        ],
        "test": [],
    }
    check_json(
        tmp_path / "dataset.json",
        description,
        lambda: DATASETS["decathlon"].read(tmp_path),
        numbers,
    )


def test_the_files_of_nnunet_are_read_or_named(numbers, tmp_path):
    description = {
        "channel_names": {"0": "T1", "1": "CT"},
        "labels": {"background": 0, "whole": [1, 2], "front": [2], "ignore": 3},
        "regions_class_order": [1, 2],
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    listed = {n: {"images": [f"{n}_0000.nii.gz"] * 2, "label": f"{n}.nii.gz"} for n in "ab"}
    for entries in ({}, {"dataset": listed}):
        check_json(
            tmp_path / "dataset.json",
            description | entries,
            lambda: DATASETS["nnunet"].read(tmp_path),
            numbers[: len(numbers) // 2],
        )


def test_the_files_of_a_run_are_read_or_named(numbers, tmp_path):
    config = json.loads(json.dumps(dataclasses.asdict(parse_config({"data": {"name": "mni152"}}))))
    info = json.loads(json.dumps(dataclasses.asdict(GREY)))
    check_json(tmp_path / "config.json", config, lambda: run.read_config(tmp_path), numbers)
    check_json(tmp_path / "dataset.json", info, lambda: run.read_dataset_info(tmp_path), numbers)


@pytest.mark.slow
def test_a_report_is_made_or_says_which_file_is_damaged(numbers, tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "config.json").write_text('{"a": 1}')
    metric = {"mean": 0.5, "sd": None, "count": 1, "undefined": 0}
    scores = {"dice": metric, "hd95": metric, "nsd": metric, "assd": metric}
    evaluation = {
        "dataset": "x",
        "split": "test",
        "checkpoint": {"name": "best", "step": 3},
        "classes": ["background", "a"],
        "colors": ["#000000", "#E69F00"],
        "distance_unit": "mm",
        "cases": [{"case": "1", "class": "a", "dice": 0.5, "hd95": 1.0, "assd": 1.0, "nsd": 0.1}],
        "by_class": {"a": scores},
        "summary": scores,
        "examples": [],
    }
    file = tmp_path / "evaluation" / "x-test.json"
    check_json(file, evaluation, lambda: write_report(tmp_path), numbers[: len(numbers) // 4])
