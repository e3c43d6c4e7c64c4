"""From a data set's raw files to records on disk, in one way for all sets.

A data set is described once, as a `Dataset`, whose `read` finds the cases of each split; a case is
loaded when its turn comes. Threads load, check and encode cases, one each at a time, and their
slices are written at once as losslessly compressed records (ArrayRecord of tensorflow-datasets,
without TensorFlow): memory holds a few cases, however large the set is. Beside the records lie a
summary, the checksums of what was read and a contact sheet.
"""

import dataclasses
import hashlib
import inspect
import io
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from spectral_jax.data.datasets import splits as splitting
from spectral_jax.data.datasets import summary
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded
from spectral_jax.data.datasets.files import and_others, walk
from spectral_jax.data.datasets.staging import PREFIX, staging
from spectral_jax.data.labels import IGNORED, MOST_OVERLAPPING, regions_table
from spectral_jax.data.parallel import available_cores, run_ahead
from spectral_jax.data.pictures import as_stored
from spectral_jax.data.volumes import DataError
from spectral_jax.lock import FILE as LOCK_FILE
from spectral_jax.options import read_options

VERSION = "1.6.0"  # 1.5: volumes in one orientation; 1.6: checksums of records
RECORDS_PER_SHARD = 1000
MOST_NAMED = 10  # damaged cases
PNG_LEVEL = 3  # of zlib: half a per cent larger than the highest, and several times faster


def prepare(
    dataset: Dataset,
    *,
    root: str | pathlib.Path | None,
    data_dir: str | pathlib.Path | None,
    validation: float = 0.1,
    resplit: bool = False,
    fold: int | None = None,
    folds: int = 5,
    ignore_label: int | None = None,
    regions: Mapping[str, Sequence[int | str]] | None = None,
    **options: Any,
) -> pathlib.Path:
    """Writes a data set's records, unless they are there, and returns their folder.

    Args:
      dataset: what to prepare.
      root: folder of the raw files; ignored by sets that bring their own.
      data_dir: where prepared sets live; None for that of tensorflow-datasets.
      validation: share of the training part, by patient or video, to hold out for validation where
        the set has no validation part; 0 for none.
      resplit: split all cases again, instead of the published split.
      fold: which fold of a cross-validation to hold out, from 0; None for no folds.
      folds: how many there are.
      ignore_label: value of the labels whose pixels do not count, in training and scores.
      regions: classes to train on instead of the set's own, each made of some of these, by number
        or name; regions may overlap: `{"whole": (1, 2), "front": ("anterior",)}`.
      **options: of the data set's `read`.

    Raises:
      DataError: for raw data that cannot be used; nothing is left behind.
    """
    given = options | {"validation": validation, "resplit": resplit}
    if fold is not None:
        given |= {"fold": fold, "folds": folds}
    if ignore_label is not None:
        given["ignore_label"] = ignore_label
    if regions is not None:
        given["regions"] = regions
    options, choices, coding = _read_options(dataset, given)
    everything = options | choices | coding
    root = _find_root(dataset, root)
    data_dir = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    stem = re.sub(r"[^\w.-]+", "_", root.name if root else dataset.name, flags=re.ASCII)
    beside = dataset.beside(root) if root else ()
    name = f"{stem}-{fingerprint(dataset, root, everything, beside)}"
    folder = data_dir / dataset.name / name / VERSION
    if folder.is_dir():
        return folder
    with staging(data_dir) as temporary:
        if not folder.is_dir():  # another process may have been at it
            found = dataset.read(root, **options)
            if not any(found.splits.values()):
                raise DataError(f"{root}: no case found\n{dataset.source}")
            splits, notes = splitting.decide(found, **choices)
            found = found._replace(splits=splits, notes=(*found.notes, *notes))
            dataset = dataclasses.replace(dataset, **found.details)
            _check_classes(dataset, root)
            dataset = code_labels(dataset, **({"regions": dataset.regions} | coding))
            written = _write(dataset, found, temporary, name, root, everything)
            folder.parent.mkdir(parents=True, exist_ok=True)
            written.rename(folder)
    return folder


def code_labels(
    dataset: Dataset,
    ignore_label: int | None = None,
    regions: Mapping[str, Sequence[int | str]] | None = None,
) -> Dataset:
    """The data set with a value that does not count, and regions in place of its classes."""
    if ignore_label is not None:
        dataset = dataclasses.replace(dataset, ignore_label=ignore_label)
    if regions:
        dataset = dataclasses.replace(dataset, regions=region_numbers(dataset, regions))
    return dataset


def region_numbers(
    dataset: Dataset, regions: Mapping[str, Sequence[int | str]]
) -> dict[str, list[int]]:
    """The class numbers of each region.

    Raises:
      DataError: for a class that the set does not have, or regions that cannot be.
    """
    classes = dataset.classes or ()
    known = ", ".join(f"{number} {name}" for number, name in enumerate(classes) if number)
    if dataset.overlapping:
        raise DataError(f"regions: the classes of {dataset.name!r} overlap already: {known}")
    if len(regions) > MOST_OVERLAPPING:
        raise DataError(f"{len(regions)} regions; expected at most {MOST_OVERLAPPING}")
    numbers: dict[str, list[int]] = {}
    for region, members in regions.items():
        if "/" in region or region.startswith("."):
            raise DataError(f"region {region!r}: expected a name that a folder can have")
        found = [classes.index(m) if m in classes else m for m in members]
        numbers[region] = [int(m) for m in found if m in range(1, len(classes))]
        wrong = [m for m in found if m not in range(1, len(classes))]
        if wrong or not found:
            what = f"class {wrong[0]!r}" if wrong else "no class"
            raise DataError(
                f"region {region!r}: {what}; expected some of {known}, by number or name"
            )
    return numbers


def find_prepared(
    name: str, data_dir: str | pathlib.Path | None, options: Mapping[str, Any]
) -> pathlib.Path:
    """The records of a data set that were prepared last with these options, whatever the others.

    Those of a fold are left out.

    Raises:
      DataError: if there are none.
    """
    data_dir = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    folders = [
        folder
        for folder in (data_dir / name).glob(f"*/{VERSION}")
        if "fold" not in (prepared := summary.read_options(folder))
        and options.items() <= prepared.items()
    ]
    if not folders:
        chosen = "".join(f" --option={key}={value}" for key, value in options.items())
        older = any((data_dir / name).glob("*/*"))
        how = "is not prepared like this by this version" if older else "is not prepared"
        raise DataError(
            f"{data_dir / name}: data set {name!r} {how}; run "
            f"spectral-jax prepare --dataset={name} --raw_dir=FOLDER --data_dir={data_dir}{chosen}"
        )
    folders.sort(key=lambda folder: folder.stat().st_mtime)
    return folders[-1]


def fingerprint(
    dataset: Dataset,
    root: pathlib.Path | None,
    options: Mapping[str, Any],
    beside: Sequence[pathlib.Path] = (),
) -> str:
    """Eight hexadecimal digits that change with the options and the raw files' names and dates."""
    files = []
    if root is not None:
        for path in (*walk(root), *beside):
            name = path.relative_to(root) if path.is_relative_to(root) else path
            if path.name == LOCK_FILE or any(part.startswith(PREFIX) for part in name.parts):
                continue
            stat = path.stat() if path.exists() else path.lstat()
            files.append((str(name), stat.st_size, stat.st_mtime_ns))
    text = json.dumps([dataset.name, VERSION, str(root), files, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _read_options(dataset: Dataset, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Typed options: of the data set's `read`, of `splits.decide`, and of `code_labels`."""
    readers, choices, codings = (
        {
            parameter.name: parameter.annotation
            for parameter in list(inspect.signature(function).parameters.values())[1:]
        }
        for function in (dataset.read, splitting.decide, code_labels)
    )
    kinds = choices | codings | readers
    options = read_options(f"data set {dataset.name!r}", given, kinds, DataError)
    return [
        {key: value for key, value in options.items() if key in of}
        for of in (readers, choices, codings)
    ]


def _check_classes(dataset: Dataset, root: pathlib.Path | None) -> None:
    names = dataset.classes or ()
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{root}: class {twice[0]!r} is named twice; classes: {', '.join(names)}")
    if not 2 <= len(names) <= 256:
        raise DataError(f"{root}: {len(names)} classes; expected 2 to 256, the background first")


def _find_root(dataset: Dataset, root: str | pathlib.Path | None) -> pathlib.Path | None:
    if not dataset.needs_root:
        return None
    if not root:
        raise DataError(
            f"data set {dataset.name!r} is made from your files; say where they are: "
            f"--config.data.root=FOLDER, or --raw_dir=FOLDER of spectral-jax prepare.\n"
            f"{dataset.source}"
        )
    root = pathlib.Path(os.path.realpath(pathlib.Path(root).expanduser()))
    if not root.is_dir():
        raise DataError(f"{root}: no such folder (--config.data.root or --raw_dir)")
    return root


def _write(
    dataset: Dataset,
    found: Found,
    data_dir: pathlib.Path,
    name: str,
    root: pathlib.Path | None,
    options: Mapping[str, Any],
) -> pathlib.Path:
    """Writes records and what lies beside them, and returns their folder."""
    folder = data_dir / dataset.name / name / VERSION
    folder.mkdir(parents=True)
    stored = dataset.stored
    first = _first_sound(case for split in found.splits.values() for case in split)
    channels = dataset.channels or first.image.shape[-1]
    dtype = first.image.dtype
    # one record after the other: other writers of tensorflow-datasets gather a whole split first
    info = _dataset_info(stored, found, channels, dtype, name, folder)
    writer = tfds.core.SequentialWriter(
        info,
        max_examples_per_shard=RECORDS_PER_SHARD,
        file_format="array_record",
    )
    writer.initialize_splits(list(found.splits))
    statistics: summary.Statistics = {split: [] for split in found.splits}
    contents = {split: hashlib.sha256() for split in found.splits}
    problems: list[DataError] = []
    count = sum(map(len, found.splits.values()))
    with tqdm(total=count, desc=dataset.name, unit="case", disable=None) as bar:
        for split, cases in found.splits.items():
            encode = partial(
                _encode_or_tell,
                dataset=dataset,
                channels=channels,
                dtype=dtype,
                tile=found.tile if split == "train" else 0,
            )
            for case in run_ahead(encode, cases, available_cores()):
                bar.update()
                if isinstance(case, DataError):
                    problems.append(case)
                    _raise_together(problems, least=MOST_NAMED)
                if problems or isinstance(case, DataError):  # the others are only looked at
                    continue
                writer.add_examples({split: case.records})
                contents[split].update(case.checksum)
                statistics[split].append(case.statistics)
                if case.instances:
                    (folder / "instances").mkdir(exist_ok=True)
                    picture = folder / "instances" / f"{case.statistics.name}.png"
                    picture.write_bytes(case.instances)
    _raise_together(problems)
    info.metadata["checksums"] = {split: of.hexdigest() for split, of in contents.items()}
    writer.close_all()
    for remark in summary.write(folder, stored, found, statistics, root, options):
        logging.getLogger(__name__).warning("note: %s: %s", dataset.name, remark)
    return folder


def _dataset_info(
    dataset: Dataset,
    found: Found,
    channels: int,
    dtype: np.dtype,
    config: str,
    folder: pathlib.Path,
) -> tfds.core.DatasetInfo:
    """What tensorflow-datasets is to know of the records in a folder."""
    return tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=dataset.name,
            version=tfds.core.Version(VERSION),
            data_dir=str(folder),
            module_name=__name__,
            config_name=config,
        ),
        description=dataset.description,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(
                    shape=(None, None, 3 if channels == 3 and dtype == np.uint8 else 1),
                    dtype=dtype,
                    encoding_format="png",
                ),
                "label": tfds.features.Image(
                    shape=(None, None, 1), dtype=dataset.labels.dtype, encoding_format="png"
                ),
                "case": tfds.features.Text(),
                "slice": np.int32,
                # depth, height, width; NaN where unknown
                "spacing_mm": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            }
        ),
        license=dataset.licence,
        metadata=tfds.core.MetadataDict(
            classes=list(dataset.classes or ()),
            colors=list(dataset.colors),
            modality=dataset.modality,
            channels=channels,
            channel_names=list(dataset.channel_names),
            intensity=dataset.intensity
            if isinstance(dataset.intensity, str)
            else list(dataset.intensity),
            orientation=dataset.orientation,
            overlapping=dataset.overlapping,
            ignore=dataset.ignore_label is not None,
            axes=list(dataset.axes),
            volume=dataset.volume,
            bits=dataset.bits,
            groups={case.name: case.group for split in found.splits.values() for case in split},
            folds=dict(found.folds),
        ),
    )


def _first_sound(cases: Iterable[Case]) -> Loaded:
    """The first case that can be loaded."""
    problems: list[DataError] = []
    for case in cases:
        try:
            return load(case)
        except DataError as error:
            problems.append(error)
            _raise_together(problems, least=MOST_NAMED)
    _raise_together(problems)
    raise AssertionError("no cases")


def _encode_or_tell(case: Case, **options: Any) -> "EncodedCase | DataError":
    try:
        return encode_case(case, **options)
    except DataError as error:
        return error


def _raise_together(problems: Sequence[DataError], least: int = 1) -> None:
    """Raises one DataError of several, if there are so many: what is wrong is said once."""
    if len(problems) < least:
        return
    files: dict[str, list[pathlib.Path]] = {}
    for problem in problems:
        path, _, text = str(problem).partition(": ")
        files.setdefault(text, []).append(pathlib.Path(path))
    lines = [f"{paths[0]}: {text}{and_others(paths)}" for text, paths in files.items()]
    more = ["(and perhaps others)"] if len(problems) >= MOST_NAMED else []
    raise DataError("\n".join([*lines, *more])) from problems[0]


def load(case: Case) -> Loaded:
    """A case in memory; what is no file is refused, as a pipe would never end."""
    for path in case.files:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: no regular file, but a folder, a pipe or a device")
    return case.load()


@dataclasses.dataclass(frozen=True)
class EncodedCase:
    """A case as it is written: its records, the picture of its objects, and its figures.

    The checksum is of what the records hold, as other versions may compress it otherwise.
    """

    records: list[dict[str, Any]]
    checksum: bytes
    instances: bytes | None
    statistics: summary.CaseStatistics


def encode_case(
    case: Case, *, dataset: Dataset, channels: int, dtype: np.dtype, tile: int
) -> EncodedCase:
    """Loads and checks a case and encodes its slices, or its tiles, in order."""
    loaded = load(case)
    image = as_stored(loaded.image, channels, dataset.bits, case.files[0])
    loaded = loaded._replace(image=image)
    check_case(case, loaded, dtype, dataset)
    loaded = loaded._replace(label=stored_label(loaded.label, dataset))
    spacing_mm = np.array(loaded.spacing_mm or (np.nan,) * 3, np.float32)
    slices = [
        piece
        for image, label in zip(loaded.image, loaded.label, strict=True)
        for piece in cut_tiles(image, label, tile)
    ]
    records = [
        {
            "image": encode_png(image),
            "label": encode_png(label[..., None]),
            "case": case.name,
            "slice": index,
            "spacing_mm": spacing_mm,
        }
        for index, (image, label) in enumerate(slices)
    ]
    instances = None if loaded.instances is None else encode_png(loaded.instances[..., None])
    labels = [label for _, label in slices]
    statistics = summary.measure(case, loaded, labels, dataset.stored.labels)
    return EncodedCase(records, _checksum(case.name, slices, spacing_mm), instances, statistics)


def _checksum(
    case: str, slices: Sequence[tuple[np.ndarray, np.ndarray]], spacing_mm: np.ndarray
) -> bytes:
    content = hashlib.sha256(case.encode(errors="surrogateescape"))
    for array in (spacing_mm, *(array for of_slice in slices for array in of_slice)):
        content.update(f"{array.dtype.str} {array.shape}".encode())
        content.update(np.ascontiguousarray(array).data)
    return content.digest()


def stored_label(label: np.ndarray, dataset: Dataset) -> np.ndarray:
    """The label of a case as records hold it: see `spectral_jax.data.labels`."""
    if dataset.regions:
        return regions_table(dataset.regions, dataset.ignore_label)[label]
    if dataset.ignore_label is None or dataset.overlapping:
        return label
    return np.where(label == dataset.ignore_label, np.uint8(IGNORED), label)


def check_case(case: Case, loaded: Loaded, dtype: np.dtype, dataset: Dataset) -> None:
    """Raises DataError, naming the file, unless image and label are usable."""
    image, label = loaded.image, loaded.label
    if image.ndim != 4 or label.ndim != 3 or image.shape[:3] != label.shape:
        raise DataError(
            f"{case.files[-1]}: the image is {'x'.join(map(str, image.shape[:3]))} (depth, height, "
            f"width) and its mask {'x'.join(map(str, label.shape))}; they must be of one size"
        )
    if image.dtype != dtype or dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{case.files[0]}: the image has type {image.dtype}, the data set {dtype}; expected "
            "uint8 or uint16, the same for all"
        )
    classes = dataset.classes or ()
    if dataset.overlapping:  # whose readers make the labels
        return
    known = np.zeros(256, bool)
    known[[*range(len(classes)), dataset.ignore_label or 0]] = True
    wrong = ~known[label]
    for index in np.flatnonzero(wrong.any((1, 2)))[:1]:
        by_slice = len(case.files) in (len(label), 2 * len(label))
        path = case.files[-len(label) :][index] if by_slice else case.files[-1]
        value = label[index][wrong[index]].max()
        raise DataError(
            f"{path}: the mask holds the value {value}, but there are {len(classes)} "
            f"classes: {', '.join(f'{i} {name}' for i, name in enumerate(classes))}. It holds "
            f"{', '.join(map(str, np.unique(label[index])))}. Where other values stand for classes "
            "(data set folder), give each its colour in classes.txt, such as 'liver #808080'. "
            f"Where {value} is no class: --config.data.options.ignore_label={value}"
        )


def cut_tiles(
    image: np.ndarray, label: np.ndarray, tile: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cuts a picture into squares that cover it, overlapping as evenly as they can."""
    starts = [
        np.linspace(0, max(0, size - tile), -(-size // tile) if tile else 1).astype(int)
        for size in label.shape
    ]
    for top in starts[0]:
        for left in starts[1]:
            window = np.s_[top : top + tile, left : left + tile] if tile else np.s_[:]
            yield image[window], label[window]


def encode_png(array: np.ndarray) -> bytes:
    """A PNG of `[height, width, channels]`, uint8 or uint16.

    Of colour in 8 bits; other channels lie below each other.
    """
    file = io.BytesIO()
    if array.shape[-1] != 3 or array.dtype != np.uint8:
        array = np.concatenate(list(np.moveaxis(array, -1, 0)))
    picture = Image.fromarray(array)
    picture.save(file, "PNG", compress_level=PNG_LEVEL)
    return file.getvalue()
