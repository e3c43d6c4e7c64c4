"""From a data set's raw files to records on disk: one tensorflow-datasets builder for all sets.

A data set is described once, as a `Dataset`, whose `read` finds the cases of each split and loads
one at a time. The builder checks each case, writes its slices as losslessly compressed records
(ArrayRecord), and needs no TensorFlow. Nothing half-written stays: records appear under their final
name only when all of them are written.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image
from tqdm import tqdm

VERSION = "1.0.0"

BACKGROUND_COLOR = "#000000"
# told apart by colour-blind readers too: Okabe and Ito, then Tol's muted colours
COLORS = (
    "#E69F00 #56B4E9 #009E73 #F0E442 #0072B2 #D55E00 #CC79A7 "
    "#882255 #44AA99 #999933 #332288 #DDCC77 #117733 #AA4499"
).split()


class DataError(ValueError):
    """Raw data that cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A patient's volume, or a picture.

    Attributes:
      name: unique within the data set.
      files: what it is made of; the first is named in errors.
      load: returns the image `[depth, height, width, channels]`, uint8 or uint16, the label
        `[depth, height, width]`, uint8, and the spacing `(z, y, x)` in mm or None.
    """

    name: str
    files: tuple[pathlib.Path, ...]
    load: Callable[[], tuple[np.ndarray, np.ndarray, tuple[float, ...] | None]]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What is known of a data set.

    Attributes:
      name: as in `--config.data.name`.
      description: one sentence.
      modality: such as "T1 MRI".
      channels: 1 or 3.
      classes: names, background first; None if the raw data tell (see `read`).
      licence: and where the files come from.
      read: `read(root, **options)` returns the cases of each split, "train", "validation" and
        "test", and the class names if they were not known before.
      needs_root: whether raw files must be given.
    """

    name: str
    description: str
    modality: str
    channels: int | None
    classes: tuple[str, ...] | None
    licence: str
    read: Callable[..., tuple[Mapping[str, list[Case]], tuple[str, ...]]]
    needs_root: bool = True


def check_case(
    case: Case, image: np.ndarray, label: np.ndarray, channels: int, classes: tuple[str, ...]
) -> None:
    """Raises DataError, naming the case's first file, unless image and label are usable."""

    def fail(problem: str) -> None:
        raise DataError(f"{case.files[0]}: {problem}")

    if image.ndim != 4 or label.ndim != 3 or image.shape[:3] != label.shape:
        fail(
            f"the image is {'x'.join(map(str, image.shape[:3]))} (depth, height, width) and its "
            f"mask {'x'.join(map(str, label.shape))}; they must be of one size"
        )
    if image.shape[3] != channels:
        fail(f"the image has {image.shape[3]} channels, the data set {channels}")
    if image.dtype not in (np.uint8, np.uint16):
        fail(f"the image has type {image.dtype}; expected uint8 or uint16")
    if label.size and label.max() >= len(classes):
        fail(
            f"the mask holds the value {label.max()}, but there are {len(classes)} classes: "
            f"{', '.join(f'{i} {name}' for i, name in enumerate(classes))}"
        )


def fingerprint(dataset: Dataset, root: pathlib.Path | None, options: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that change with the options and the raw files' names and dates."""
    files = []
    if root is not None:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                stat = path.stat()
                files.append((str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns))
    text = json.dumps([dataset.name, VERSION, str(root), files, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _builder_class(dataset: Dataset, cases: Mapping[str, list[Case]], classes: tuple[str, ...]):
    """A tensorflow-datasets builder of these cases, named after the data set."""
    first = next(case for split in cases.values() for case in split)
    image = first.load()[0]
    channels = dataset.channels or image.shape[-1]
    foreground = len(classes) - 1

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)
        pkg_dir_path = epath.Path(__file__).parent

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=dataset.description,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(
                            shape=(None, None, channels), dtype=image.dtype, encoding_format="png"
                        ),
                        "label": tfds.features.Image(
                            shape=(None, None, 1), dtype=np.uint8, encoding_format="png"
                        ),
                        "case": tfds.features.Text(),
                        "slice": np.int32,
                        # depth, height, width; NaN where unknown
                        "spacing_mm": tfds.features.Tensor(shape=(3,), dtype=np.float32),
                    }
                ),
                license=dataset.licence,
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(
                    classes=list(classes),
                    colors=[BACKGROUND_COLOR, *itertools.islice(itertools.cycle(COLORS), foreground)],
                    modality=dataset.modality,
                    channels=channels,
                ),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(cases[split]) for split in cases}

        def _generate_examples(self, split_cases):
            for case in tqdm(split_cases, unit="case", leave=False, disable=None):
                yield from records(case, channels, classes)

    Builder.name = dataset.name
    return Builder


def records(
    case: Case, channels: int, classes: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Loads and checks a case and yields its slices, in order, as (key, record)."""
    image, label, spacing = case.load()
    check_case(case, image, label, channels, classes)
    spacing_mm = np.array(spacing or (np.nan,) * 3, np.float32)
    for index in range(len(image)):
        yield (
            f"{case.name}/{index:05d}",
            {
                "image": Image.fromarray(image[index].squeeze()),
                "label": Image.fromarray(label[index]),
                "case": case.name,
                "slice": index,
                "spacing_mm": spacing_mm,
            },
        )


def prepare(
    dataset: Dataset,
    *,
    root: str | pathlib.Path | None,
    data_dir: str | pathlib.Path | None,
    **options: Any,
) -> pathlib.Path:
    """Writes a data set's records, unless they are there, and returns their folder.

    Args:
      dataset: what to prepare.
      root: folder of the raw files; ignored by sets that bring their own.
      data_dir: where prepared sets live; None for that of tensorflow-datasets.
      **options: of the data set's `read`.

    Raises:
      DataError: for raw data that cannot be used; nothing is left behind.
    """
    if dataset.needs_root:
        if not root:
            raise DataError(
                f"data set {dataset.name!r} is made from your files; "
                "say where they are: --config.data.root=FOLDER"
            )
        root = pathlib.Path(root).expanduser().resolve()
        if not root.is_dir():
            raise DataError(f"{root}: no such folder (--config.data.root)")
    else:
        root = None
    data_dir = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    name = f"{root.name if root else dataset.name}-{fingerprint(dataset, root, options)}"
    folder = data_dir / dataset.name / name / VERSION
    if folder.is_dir():
        return folder

    cases, classes = dataset.read(root, **options)
    for split in ("train", "test"):
        if not cases.get(split):
            raise DataError(f"{root}: no images in the {split!r} split")
    _check_names(cases)
    for leftover in folder.parent.glob("incomplete.*"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    builder = _builder_class(dataset, cases, classes)(
        data_dir=data_dir,
        config=tfds.core.BuilderConfig(name=name, version=VERSION),
        file_format="array_record",
    )
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(compute_stats="skip")
        )
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    return folder


def _check_names(cases: Mapping[str, Iterable[Case]]) -> None:
    seen: dict[str, Case] = {}
    for case in (case for split in cases.values() for case in split):
        if case.name in seen:
            raise DataError(
                f"{case.files[0]}: case {case.name!r} is there twice, also as "
                f"{seen[case.name].files[0]}; cases must not repeat, least of all between splits"
            )
        seen[case.name] = case
