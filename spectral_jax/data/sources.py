"""Prepared records as slices for training and as whole cases for evaluation."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from PIL import Image

from spectral_jax.data import headers
from spectral_jax.data.labels import Labels
from spectral_jax.data.volumes import DataError


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

    def volume(self, case: str) -> Volume:
        """All slices of a case, in order."""
        records = self._slices[case]
        images, labels = zip(*(self.slice(record) for record in records), strict=True)
        spacing = self._records[records[0]]["spacing_mm"]
        known = bool(np.isfinite(spacing).all())
        return Volume(
            name=case,
            image=np.stack(images),
            label=np.stack(labels),
            spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])) if known else None,
        )


def _decode(picture: bytes) -> np.ndarray:
    with headers.open_picture(io.BytesIO(picture)) as file:
        return np.asarray(file)


def fit_patch(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Cuts `size` voxels from `start` out of the leading axes; short axes end in zeros."""
    window = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
    patch = array[window]
    missing = [(0, n - have) for n, have in zip(size, patch.shape, strict=False)]
    return np.pad(patch, missing + [(0, 0)] * (array.ndim - len(size)))


class TrainingVolumes:
    """Whole cases of a split, decoded once and then kept in memory, for patches to be cut from.

    An element is a dictionary of `image` `[depth, height, width, channels]`, `label` `[depth,
    height, width]` and `record`, the number of the case.
    """

    def __init__(self, split: Split):
        self._split = split
        self._cache: dict[int, dict[str, np.ndarray | np.int32]] = {}

    def __len__(self) -> int:
        return len(self._split.cases)

    def __getitem__(self, record: int) -> dict[str, np.ndarray | np.int32]:
        if record not in self._cache:
            volume = self._split.volume(self._split.cases[record])
            self._cache[record] = {
                "image": volume.image,
                "label": volume.label,
                "record": np.int32(record),
            }
        return self._cache[record]

    def case_name(self, record: int) -> str:
        """The case that an element is."""
        return self._split.cases[record]


class CutPatch:
    """Cuts a patch of one size out of a volume: at random, or from its middle."""

    def __init__(self, size: tuple[int, ...]):
        self._size = size

    def __call__(self, example: dict, generator: np.random.Generator | None = None) -> dict:
        """Without a generator, the middle."""
        room = [max(0, n - p) for n, p in zip(example["label"].shape, self._size, strict=True)]
        if generator is None:
            start = [n // 2 for n in room]
        else:
            start = [int(generator.integers(n + 1)) for n in room]
        return {
            "image": fit_patch(example["image"], start, self._size),
            "label": fit_patch(example["label"], start, self._size),
            "record": example["record"],
        }


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
