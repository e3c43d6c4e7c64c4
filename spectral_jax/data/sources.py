"""Prepared records as slices for training and as whole cases for evaluation."""

import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float, Int, UInt
from PIL import Image

from spectral_jax import limits
from spectral_jax.data import headers
from spectral_jax.data.labels import Labels
from spectral_jax.data.resampling import resample_image, resample_label, shape_at
from spectral_jax.data.volumes import DataError, Spacing
from spectral_jax.files import read_json

MOST_PLACES = 10_000  # of each class that patches are cut around, as nnU-Net keeps
SUMMARY_FILE = "summary.json"  # beside the records


@dataclasses.dataclass(frozen=True)
class Volume:
    """A case at its original size; a picture has depth 1.

    Attributes:
      name: of the case.
      image: `[depth, height, width, channels]`, uint8 or uint16.
      label: `[depth, height, width]`, as `DatasetInfo.labels` says.
      spacing_mm: `(depth, height, width)` of a voxel, or None where unknown.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    spacing_mm: tuple[float, float, float] | None


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a prepared data set says of itself; older ones leave the last fields empty.

    Attributes:
      name: of the data set.
      modality: such as "T1 MRI".
      classes: names, background first.
      colors: one a class, as "#rrggbb".
      channels: of the images.
      intensity: how intensities were scaled, a key of `spectral_jax.data.volumes.INTENSITIES`, or
        one for each of `channel_names`.
      licence: as far as known.
      orientation: what NIfTI files were turned to, see `spectral_jax.data.geometry`; "" where they
        were used as stored, as older versions did, or had none, as pictures.
      axes: those of a NIfTI file, once turned, that became depth, height and width.
      volume: which one was taken of NIfTI files that hold several; None if each holds one.
      bits: how many bits the values of 16-bit pictures used before they were stored in full range.
      checksums: SHA-256 of all that the records of a split hold, by split.
      overlapping: whether a pixel can be of several classes.
      ignore: whether there are pixels that do not count.
      channel_names: where each channel was a volume or a file of its own, such as "FLAIR"; () of
        pictures and of a single one.
      patch_spacing_mm: of a voxel, (depth, height, width) or (height, width), to which cases are
        brought before a network sees patches of them; () where they stay as they are.
      sizes: how many "cases" and "records" there are, by split.
    """

    name: str
    modality: str
    classes: tuple[str, ...]
    colors: tuple[str, ...]
    channels: int
    intensity: str | tuple[str, ...] = ""
    licence: str = ""
    axes: tuple[int, ...] = ()
    volume: int | None = None
    bits: int = 16
    orientation: str = ""
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    overlapping: bool = False
    ignore: bool = False
    channel_names: tuple[str, ...] = ()
    patch_spacing_mm: tuple[float, ...] = ()
    sizes: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """How its labels are to be read."""
        return Labels(len(self.classes) - 1, self.overlapping, self.ignore)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes `[height, width, channels]` linearly, averaging where it shrinks; keeps the type."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    channels = [
        Image.fromarray(image[..., channel].astype(np.float32)).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for channel in range(image.shape[-1])
    ]
    resized = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    if np.issubdtype(image.dtype, np.integer):
        resized = np.rint(resized)
    return resized.astype(image.dtype)


def resize_rows(
    image: np.ndarray, size: tuple[int, int], rows: range
) -> Float[np.ndarray, "rows width channels"]:
    """Some rows of what `resize_image` makes of a float32 image; the others are not computed."""
    height, width = size
    ratio = image.shape[0] / height
    box = (0, rows.start * ratio, image.shape[1], rows.stop * ratio)
    channels = [
        Image.fromarray(image[..., channel]).resize(
            (width, len(rows)), Image.Resampling.BILINEAR, box
        )
        for channel in range(image.shape[-1])
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


def resize_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a label `[height, width]` to the values of the nearest pixels."""
    height, width = size
    return np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


def _open(folder: pathlib.Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of whatever reads JSON, protocol buffers or names there
        raise DataError(
            f"{folder}: damaged ({error}); delete this folder and start again, and the data set is "
            "prepared anew"
        ) from error


class Split:
    """One split of a prepared data set.

    Attributes:
      name: of the split.
      info: of the data set.
      groups: the patient or video that each case belongs to.
      folds: for cases that a published fold holds out, its number.
    """

    def __init__(self, folder: pathlib.Path, name: str):
        """Opens the split, or "all" of them as one; nothing is decoded yet.

        Raises:
          ValueError: if the data set has no such split.
        """
        builder = _open(folder)
        if name not in (*builder.info.splits, "all"):
            raise ValueError(
                f"data set {builder.name!r} has no split {name!r}; it has "
                f"{sorted(builder.info.splits)}. Its files may be missing; or split all again: "
                "--config.data.options.resplit=True"
            )
        self.name = name
        self._folder = folder
        metadata = builder.info.metadata
        self.groups: Mapping[str, str] = metadata["groups"]
        self.folds: Mapping[str, int] = metadata.get("folds", {})
        intensity = metadata["intensity"]
        self.info = DatasetInfo(
            name=builder.name,
            modality=metadata["modality"],
            classes=tuple(metadata["classes"]),
            colors=tuple(metadata["colors"]),
            channels=metadata["channels"],
            intensity=intensity if isinstance(intensity, str) else tuple(intensity),
            licence=builder.info.redistribution_info.license,
            axes=tuple(metadata.get("axes", ())),
            volume=metadata.get("volume"),
            bits=metadata.get("bits", 16),
            orientation=metadata.get("orientation", ""),
            checksums=metadata.get("checksums", {}),
            overlapping=metadata.get("overlapping", False),
            ignore=metadata.get("ignore", False),
            channel_names=tuple(metadata.get("channel_names", ())),
            sizes=_read_sizes(folder),
        )
        # pictures stay PNG bytes here: tensorflow-datasets decodes 16 bit with OpenCV only
        skip = {"image": tfds.decode.SkipDecoding(), "label": tfds.decode.SkipDecoding()}
        self._records = builder.as_data_source(name, decoders=skip)
        index: dict[str, dict[int, int]] = {}
        self._case_of_record: list[str] = []
        for position in range(len(self._records)):
            record = self._read(position)
            case = record["case"].decode()
            index.setdefault(case, {})[int(record["slice"])] = position
            self._case_of_record.append(case)
        self._slices = {case: [of[i] for i in sorted(of)] for case, of in index.items()}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def cases(self) -> Sequence[str]:
        """Names of the cases, in the order in which they were written."""
        return list(self._slices)

    def case_name(self, record: int) -> str:
        """The case that a record is a slice of."""
        return self._case_of_record[record]

    def slice(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """Image `[height, width, channels]` and label `[height, width]` of one record."""
        example = self._read(record)
        try:
            image, label = (_decode(example[key]) for key in ("image", "label"))
        except (OSError, SyntaxError, ValueError) as error:
            raise self._damaged(record, f"case {self.case_name(record)}: {error}") from error
        if image.ndim == 2:  # channels lie below each other
            image = np.moveaxis(image.reshape(self.info.channels, *label.shape), 0, -1)
        return image, label

    def _read(self, record: int) -> dict[str, Any]:
        try:
            return self._records[record]
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            raise self._damaged(record, str(error)) from error

    def _damaged(self, record: int, reason: str) -> DataError:
        return DataError(
            f"{self._folder}: record {record} of the {self.name} split is damaged ({reason}); "
            "delete this folder and start again, and the data set is prepared again"
        )

    def spacing_mm(self, case: str) -> Spacing | None:
        """`(depth, height, width)` of a voxel of a case, or None where unknown."""
        depth, height, width = map(float, self._read(self._slices[case][0])["spacing_mm"])
        return (depth, height, width) if np.isfinite([depth, height, width]).all() else None

    def median_spacing_mm(self) -> tuple[float, ...]:
        """The median over cases along each axis; () if no case's is known."""
        known = [spacing for case in self.cases if (spacing := self.spacing_mm(case))]
        return tuple(map(float, np.median(known, axis=0))) if known else ()

    def volume(self, case: str) -> Volume:
        """All slices of a case, in order."""
        records = self._slices[case]
        images, labels = zip(*(self.slice(record) for record in records), strict=True)
        return Volume(
            name=case,
            image=np.stack(images),
            label=np.stack(labels),
            spacing_mm=self.spacing_mm(case),
        )


def _read_sizes(folder: pathlib.Path) -> dict[str, dict[str, int]]:
    file = folder / SUMMARY_FILE
    if not file.exists():
        return {}
    splits = read_json(file, "delete this folder, and the data set is prepared again")["splits"]
    return {name: {what: of[what] for what in ("cases", "records")} for name, of in splits.items()}


def _decode(picture: bytes) -> np.ndarray:
    with headers.open_picture(io.BytesIO(picture)) as file:
        return np.asarray(file)


def fit_patch(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Cuts `size` voxels from `start` out of the leading axes; short axes end in zeros."""
    window = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
    patch = array[window]
    missing = [(0, n - have) for n, have in zip(size, patch.shape, strict=False)]
    return np.pad(patch, missing + [(0, 0)] * (array.ndim - len(size)))


def foreground_places(
    label: UInt[np.ndarray, "*spatial"], labels: Labels
) -> list[Int[np.ndarray, " places"]]:
    """Where each class is that is there, as indices of the flat label; at most 10,000, evenly."""
    foreground = np.flatnonzero(label)
    values = label.ravel()[foreground]
    places = []
    for number in range(1, labels.classes + 1):
        of_class = foreground[labels.mask(values, number)]
        if len(of_class):
            chosen = np.linspace(0, len(of_class) - 1, min(len(of_class), MOST_PLACES))
            places.append(of_class[chosen.astype(int)])
    return places


class TrainingVolumes:
    """Whole cases of a split, decoded once and then kept in memory, for patches to be cut from.

    An element is a dictionary of `image` `[depth, height, width, channels]`, `label` `[depth,
    height, width]`, `record`, the number of the case, and `foreground`: see `foreground_places`.
    """

    def __init__(self, split: Split, spacing_mm: Sequence[float] = ()):
        """Takes a split, and the spacing of the last axes that cases are brought to; () for none.

        What is at that spacing, or of unknown spacing, stays as it is.
        """
        self._split = split
        self._spacing_mm = tuple(spacing_mm)
        self._cache: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self._split.cases)

    def __getitem__(self, record: int) -> dict[str, Any]:
        if record not in self._cache:
            volume = self._split.volume(self._split.cases[record])
            shape = shape_at(volume.label.shape, volume.spacing_mm, self._spacing_mm)
            if shape != volume.label.shape:
                limits.check_bytes(volume.name, math.prod(shape) * volume.image[0, 0, 0].nbytes)
            label = resample_label(volume.label, shape)
            self._cache[record] = {
                "image": resample_image(volume.image, shape),
                "label": label,
                "record": np.int32(record),
                "foreground": foreground_places(label, self._split.info.labels),
            }
        return self._cache[record]

    def case_name(self, record: int) -> str:
        """The case that an element is."""
        return self._split.cases[record]


class CutPatch:
    """Cuts a patch of one size out of a volume: anywhere, or around a voxel of the foreground.

    Attributes:
      foreground: share of patches that are cut around foreground.
    """

    def __init__(self, size: tuple[int, ...], foreground: float = 0.0):
        """Takes a size, of which two numbers are those of a patch of a slice, and the share."""
        self._in_slices = len(size) == 2
        self._size = (1, *size) if self._in_slices else size
        self.foreground = foreground

    def __call__(self, example: dict, generator: np.random.Generator | None = None) -> dict:
        """Cuts at random; without a generator, around the foreground's middle, or the volume's.

        Of examples with a `number`, counted from 0, every third is cut around foreground, for a
        share of a third, and the classes of a case take turns.
        """
        room = [max(0, n - p) for n, p in zip(example["label"].shape, self._size, strict=True)]
        centre = self._centre(example, generator)
        if centre is not None:
            start = [
                min(max(0, c - n // 2), r) for c, n, r in zip(centre, self._size, room, strict=True)
            ]
        elif generator is None:
            start = [n // 2 for n in room]
        else:
            start = [int(generator.integers(n + 1)) for n in room]
        image, label = (
            fit_patch(example[key], start, self._size)[0 if self._in_slices else ...]
            for key in ("image", "label")
        )
        return {"image": image, "label": label, "record": example["record"]}

    def _centre(self, example: dict, generator: np.random.Generator | None) -> list[int] | None:
        """A voxel of the foreground, if it is this example's turn and there is any."""
        classes = example["foreground"] if self.foreground else []
        if not classes:
            return None
        if generator is None:
            places = np.sort(np.concatenate(classes))
            place = places[len(places) // 2]
        else:
            turn = int(example["number"] * self.foreground)
            if int((example["number"] + 1) * self.foreground) == turn:
                return None
            places = classes[turn % len(classes)]
            place = places[generator.integers(len(places))]
        return [int(index) for index in np.unravel_index(place, example["label"].shape)]


class TrainingSlices:
    """Slices of a split at one size, decoded once and then kept in memory.

    An element is a dictionary of `image` `[size, size, channels]` (uint8 or uint16), `label`
    `[size, size]` (uint8) and `record`, its number in the split.
    """

    def __init__(self, split: Split, image_size: int):
        self._split = split
        self._size = (image_size, image_size)
        self._cache: dict[int, dict[str, np.ndarray | np.int32]] = {}

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, record: int) -> dict[str, np.ndarray | np.int32]:
        if record not in self._cache:
            image, label = self._split.slice(record)
            self._cache[record] = {
                "image": resize_image(image, self._size),
                "label": resize_label(label, self._size),
                "record": np.int32(record),
            }
        return self._cache[record]

    def case_name(self, record: int) -> str:
        """The case that an element is a slice of."""
        return self._split.case_name(record)
