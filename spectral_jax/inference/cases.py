"""Predictions on people's own files: what there is, what fits a network, and what it finds there.

Files are prepared by the very functions that prepare data sets, so that a prediction is the one
that `evaluate` scores.
"""

import collections
import dataclasses
import itertools
import logging
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float, UInt

from spectral_jax import limits
from spectral_jax.data import pictures, volumes
from spectral_jax.data.datasets.files import plain, visible_files
from spectral_jax.data.labels import Labels
from spectral_jax.data.parallel import run_ahead
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.data.volumes import DataError
from spectral_jax.inference import formats
from spectral_jax.inference.dicom import group_series
from spectral_jax.inference.formats import Scan
from spectral_jax.inference.predictor import Predictor

Progress = Callable[[str, int, int], None]  # told of a case, what is done, and of how much
READ_AHEAD = 4  # cases, by as many threads
DICOM_MODALITIES = {  # by words of a data set's modality
    "CT": {"CT"},
    "MRI": {"MR"},
    "X-ray": {"CR", "DX", "DR"},
    "dermoscopy": {"XC", "DMS"},
    "colonoscopy": {"ES"},
    "fundus": {"OP", "XC"},
    "histology": {"SM", "GM"},
    "microscopy": {"SM", "GM"},
}
CHANNEL_FILE = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")  # nnU-Net's names, without ending
DARK_BITS = 12
DARK = (
    f"no value takes more than {DARK_BITS} of 16 bits, so that the network sees a dark picture; if "
    "those that it was trained on were brighter, save it in full range"
)
AS_STORED = (
    "the run does not store the orientation of its training volumes (the files had none, or an "
    "older version prepared them: then prepare and train again); scans are used as they are "
    "stored, which is right only for those stored like the training volumes"
)


NO_SPACING = (
    "the spacing is not known, so the network sees the case as it is stored, and not at the "
    "spacing that it was trained at"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Files that are to hold one case.

    Attributes:
      files: one, one for each channel, or those of a DICOM series.
      name: of what is written, without an ending: folders stay as they are below the input.
      reason: why it cannot be done; "" if nothing is known against it.
    """

    files: tuple[pathlib.Path, ...]
    name: str
    reason: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """The files of labels below the output's folder."""
        target = self.name + formats.labels_ending(self.files[0])
        if formats.file_kind(self.files[0]) == "dicom":
            return (target, f"{self.name}.dcm")
        return (target,)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a network finds in a case.

    Attributes:
      source: its files.
      scan: what they hold.
      image: `[depth, height, width, channels]`, as the network's data set stores it.
      labels: what each voxel is, as `TrainedModel.labels` says.
      probabilities: of each class, if they were asked for.
    """

    source: Source
    scan: Scan
    image: np.ndarray
    labels: UInt[np.ndarray, "depth height width"]
    probabilities: Float[np.ndarray, "depth height width classes"] | None


@dataclasses.dataclass(frozen=True)
class Failure:
    """A case that cannot be used, and why; the reason names the file."""

    source: Source
    reason: str


def find_sources(
    paths: Sequence[pathlib.Path], output: pathlib.Path, channels: int = 1
) -> list[Source]:
    """Finds cases in files and, recursively, in folders.

    In a folder only files of known formats count, none that are hidden and none below `output`;
    files of a DICOM series are a case. Of `a.jpg` and `a.png` the results are `a_jpg` and `a_png`.
    Of several `channels`, `a_0000.nii.gz`, `a_0001.nii.gz` ... side by side are a case, `a`.

    Raises:
      DataError: for a path that is not there, for nothing found, or where a result would take the
        place of an input.
    """
    sources = []
    for path in paths:
        if os.path.isdir(path):
            sources += _in_folder(path, output)
        else:  # reading it will tell whether it is there
            sources.append(Source((path,), formats.without_ending(path.name)))
    if not paths:
        raise DataError("no input is named; expected files or folders, with commas between")
    if len(paths) == 1 and not os.path.lexists(paths[0]):
        raise DataError(f"{paths[0]}: no such file or folder")
    if not sources:
        raise DataError(
            f"{', '.join(map(str, paths))}: no pictures, NIfTI, HDF5, npz or DICOM files there"
        )
    sources = _named_apart(_join_channels(sources, channels) if channels > 1 else sources)
    if all(source.reason for source in sources):
        raise DataError(sources[0].reason)
    inputs = {os.path.realpath(file) for source in sources for file in source.files}
    for source in sources:
        for target in source.targets:
            if os.path.realpath(output / target) in inputs:
                raise DataError(
                    f"{output / target}: the result would take this input's place; choose another "
                    "output"
                )
    return sources


def _join_channels(sources: Sequence[Source], channels: int) -> list[Source]:
    """Puts files of one case together, in the order of their numbers, in the place of the first."""
    numbered: dict[tuple[pathlib.Path, str, str], dict[int, pathlib.Path]] = {}
    for source in sources:
        match, file = CHANNEL_FILE.fullmatch(source.name), source.files[0]
        if match and len(source.files) == 1:
            of_case = numbered.setdefault((file.parent, match["case"], _ending(file)), {})
            of_case[int(match["channel"])] = file
    joined: dict[pathlib.Path, Source] = {}
    for (_, name, _), of_case in numbered.items():
        if sorted(of_case) == list(range(channels)):
            files = tuple(of_case[number] for number in range(channels))
            joined |= {file: Source(files, name) for file in files}
    return list(dict.fromkeys(joined.get(source.files[0], source) for source in sources))


def _named_apart(sources: Sequence[Source]) -> list[Source]:
    """Adds the ending to names that are alike; what is alike even so cannot be done."""
    counts = collections.Counter(plain(source.name) for source in sources)
    longer = [
        dataclasses.replace(source, name=source.name + _ending(source.files[0]))
        if counts[plain(source.name)] > 1
        else source
        for source in sources
    ]
    alike: dict[str, list[Source]] = {}
    for source in longer:
        alike.setdefault(plain(source.name), []).append(source)
    named = []
    for source in longer:
        other = next((one for one in alike[plain(source.name)] if one is not source), None)
        if other:
            reason = (
                f"{source.files[0]} and {other.files[0]}: results of both would be called "
                f"{source.name!r}; give each an output of its own"
            )
            source = dataclasses.replace(source, reason=reason)
        named.append(source)
    return named


def _ending(file: pathlib.Path) -> str:
    """The ending of a file as a part of a name: "_nii_gz"."""
    return file.name.removeprefix(formats.without_ending(file.name)).replace(".", "_")


def _in_folder(folder: pathlib.Path, output: pathlib.Path) -> list[Source]:
    results = pathlib.Path(os.path.realpath(output))
    kinds = {
        path: formats.file_kind(path)
        for path in visible_files(folder)
        if not pathlib.Path(os.path.realpath(path)).is_relative_to(results)
    }
    if left_out := [path for path, kind in kinds.items() if not kind]:
        logging.getLogger(__name__).warning(
            "%s: left out %d files of other kinds, such as %s", folder, len(left_out), left_out[0]
        )
    sources = [
        Source((path,), formats.without_ending(path.relative_to(folder).as_posix()))
        for path, kind in kinds.items()
        if kind not in ("", "dicom")
    ]
    series, others = group_series([path for path, kind in kinds.items() if kind == "dicom"])
    if others:
        counts = collections.Counter(others.values())
        logging.getLogger(__name__).warning(
            "%s: skipped %d DICOM files that hold no image to segment (%s), such as %s",
            *(folder, len(others), ", ".join(f"{n} {kind}" for kind, n in counts.items())),
            next(iter(others)),
        )
    alone = collections.Counter(of_series[0].parent for of_series in series)
    for of_series in series:
        parent = of_series[0].parent
        if len(of_series) > 1 and alone[parent] == 1:  # a folder for a series
            place = parent.relative_to(folder).as_posix()
            name = place if place != "." else folder.resolve().name
        else:
            name = formats.without_ending(of_series[0].relative_to(folder).as_posix())
        sources.append(Source(tuple(of_series), name))
    return sources


def prepare_image(
    scan: Scan, data: DatasetInfo, file: pathlib.Path, intensity: str = ""
) -> np.ndarray:
    """Intensities and channels as a data set stores them.

    Pictures stay as they are, or are brought to full range if those of the data set were; HDF5 and
    npz files hold 0 ... 1, as those of the data sets do; NIfTI and DICOM are scaled by the rule of
    the data set.

    Args:
      scan: the case.
      data: what the network was trained on.
      file: to be named in errors.
      intensity: another rule, a key of `spectral_jax.data.volumes.INTENSITIES`, of all channels.

    Returns:
      `[depth, height, width, channels]`, uint8 or uint16.

    Raises:
      DataError: if modality, intensities or channels cannot be those of the data set.
    """
    _check_modality(scan, data, file)
    image = scan.image
    if data.channel_names and image.shape[-1] != data.channels:
        raise DataError(
            f"{file}: {image.shape[-1]} channel{'s' * (image.shape[-1] != 1)}, but the network "
            f"takes {data.channels} ({', '.join(data.channel_names)})"
        )
    if scan.kind == "nifti" and min(image.shape[1:3]) < 2:
        depth, height, width = image.shape[:3]
        raise DataError(
            f"{file}: {depth} slices of {height} x {width} pixels, turned as in training "
            f"({data.orientation or 'as stored'}); expected slices along the same direction"
        )
    rule: str | tuple[str, ...]
    if intensity:
        rule = len(data.channel_names) * (intensity,) or intensity
    elif scan.kind == "picture":
        rule = "identity"
        if "ct_window" in data.intensity:
            raise DataError(
                f"{file}: a picture, but the network was trained on Hounsfield units "
                f"({data.modality}); if its grey values are such, windowed as there, say "
                "--intensity=identity"
            )
    elif scan.kind == "arrays":
        rule = "unit"
    else:
        rule = data.intensity
        for index, of_channel in enumerate((rule,) if isinstance(rule, str) else rule):
            if of_channel != "ct_window":
                continue
            advice = f"the network was trained on them ({data.modality}); if they are, say "
            advice += "--intensity=ct_window"
            if scan.kind == "dicom" and not scan.rescaled:
                raise DataError(
                    f"{file}: no RescaleIntercept, so stored values need not be Hounsfield units; "
                    f"{advice}"
                )
            volumes.check_hounsfield(image[..., index], file, advice)
    if rule == "identity" and image.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"{file}: values of type {image.dtype}, but the network was trained on 8- or 16-bit "
            "pictures; say how to scale them, such as --intensity=mri_percentile"
        )
    if rule == "unit" and (image.min() < 0 or image.max() > 1):
        raise DataError(
            f"{file}: intensities {image.min():g} ... {image.max():g}; expected 0 ... 1, or say "
            "how to scale them, such as --intensity=mri_percentile"
        )
    bits = data.bits if rule == "identity" else 16
    return pictures.as_stored(volumes.scale(image, rule), data.channels, bits, file)


def _is_dark(image: np.ndarray) -> bool:
    return image.dtype == np.uint16 and 0 < image.max() < 2**DARK_BITS


def _check_modality(scan: Scan, data: DatasetInfo, file: pathlib.Path) -> None:
    words = data.modality.split()
    fitting = {code for word in words for code in DICOM_MODALITIES.get(word, ())}
    if scan.modality and fitting and scan.modality not in fitting:
        raise DataError(
            f"{file}: of modality {scan.modality}, but the network was trained on {data.modality}"
        )


def predict_sources(
    predictor: Predictor,
    data: DatasetInfo,
    sources: Sequence[Source],
    *,
    intensity: str = "",
    probabilities: bool = False,
    progress: Progress = lambda case, done, of: None,
) -> Iterator[Prediction | Failure]:
    """Predicts cases one after the other; what cannot be used is told in its turn.

    Nothing that a case does ends the others. Memory holds a batch, the cases that are in it, and
    the four that are read ahead of it.

    Args:
      predictor: of the network.
      data: what it was trained on.
      sources: the cases.
      intensity: see `prepare_image`.
      probabilities: keep them, as float32, of each case in turn.
      progress: called with a case's name, how many of its slices, tiles or patches are done, and of
        how many.
    """
    waiting: collections.deque[_Begun | Failure] = collections.deque()
    kept = predictor.channels if probabilities else 0
    open_source = partial(_open, predictor=predictor, data=data, intensity=intensity, kept=kept)
    opened = run_ahead(open_source, sources, READ_AHEAD)

    def begun() -> Iterator[_Begun]:
        for case in opened:
            waiting.append(case)
            if isinstance(case, _Begun):
                yield case

    def finished() -> Iterator[Prediction | Failure]:
        while waiting and (isinstance(case := waiting[0], Failure) or case.is_done):
            waiting.popleft()
            yield case if isinstance(case, Failure) else case.result()

    def report(inputs: int) -> None:
        for case in waiting:
            if isinstance(case, _Begun) and inputs:
                inputs -= case.advance(inputs, progress)

    while True:
        try:
            images, spacings = itertools.tee(begun())
            for rows in predictor.rows(
                (case.image for case in images),
                report,
                (case.scan.spacing_mm for case in spacings),
            ):
                yield from finished()
                first = waiting[0]
                assert isinstance(first, _Begun)
                first.take(rows)
            yield from finished()
            return
        except Exception:
            # cases share batches: each alone will show which of them it is
            for case in waiting:
                if isinstance(case, Failure):
                    yield case
                else:
                    yield _predict_alone(predictor, case, progress)
            waiting.clear()


@dataclasses.dataclass
class _Begun:
    """A case on its way.

    Attributes:
      decide: from probabilities to labels.
      finish: from all labels to those that are kept.
      inputs: how many slices, tiles or patches the network sees of it.
      inputs_done: of them.
      rows_done: rows of its slices whose labels are known.
    """

    source: Source
    scan: Scan
    image: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray | None
    decide: Callable[[np.ndarray], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]
    inputs: int
    inputs_done: int = 0
    rows_done: int = 0

    @property
    def is_done(self) -> bool:
        """Whether all labels are known."""
        return self.rows_done == self.labels.shape[0] * self.labels.shape[1]

    def advance(self, inputs: int, progress: Progress) -> int:
        """Tells that at most so many more inputs are done, and returns how many it took."""
        taken = min(inputs, self.inputs - self.inputs_done)
        self.inputs_done += taken
        progress(self.source.name, self.inputs_done, self.inputs)
        return taken

    def take(self, rows: np.ndarray) -> None:
        """Keeps what was found in the next rows."""
        part = slice(self.rows_done, self.rows_done + len(rows))
        width, classes = rows.shape[1:]
        self.labels.reshape(-1, width)[part] = self.decide(rows)
        if self.probabilities is not None:
            self.probabilities.reshape(-1, width, classes)[part] = rows
        self.rows_done = part.stop
        if self.is_done:
            self.labels = self.finish(self.labels)

    def result(self) -> Prediction:
        """What was found."""
        return Prediction(self.source, self.scan, self.image, self.labels, self.probabilities)


def _open(
    source: Source, predictor: Predictor, data: DatasetInfo, intensity: str, kept: int
) -> _Begun | Failure:
    """Reads a case, and makes room for its labels and the probabilities of `kept` classes."""
    file = source.files[0]
    if source.reason:
        return Failure(source, source.reason)
    try:
        scan = formats.read_scan(
            source.files,
            data.axes or formats.AXES,
            data.volume,
            data.orientation,
            channels=len(data.channel_names) or 1,
        )
        image = prepare_image(scan, data, file, intensity)
        volume = scan.kind == "nifti" or (scan.kind == "dicom" and len(scan.image) > 1)
        if volume and not data.orientation:
            scan = dataclasses.replace(scan, notes=(*scan.notes, AS_STORED))
        if scan.kind == "picture" and data.bits == 16 and not intensity and _is_dark(scan.image):
            scan = dataclasses.replace(scan, notes=(*scan.notes, DARK))
        shape = image.shape[:3]
        limits.check_bytes(file, 4 * kept * math.prod(shape))
        limits.check_bytes(file, predictor.extra_bytes(image, scan.spacing_mm))
        if data.patch_spacing_mm and scan.spacing_mm is None:
            scan = dataclasses.replace(scan, notes=(*scan.notes, NO_SPACING))
        probabilities = np.empty((*shape, kept), np.float32) if kept else None
        labels = np.empty(shape, predictor.labels_dtype)
        return _Begun(
            *(source, scan, image, labels, probabilities),
            decide=predictor.decide,
            finish=predictor.finish,
            inputs=predictor.count_inputs(image, scan.spacing_mm),
        )
    except (DataError, limits.TooLargeError) as error:
        return Failure(source, str(error))
    except Exception as error:  # what a strange file does cannot be foreseen
        return Failure(source, f"{file}: cannot be used: {type(error).__name__}: {error}")


def _predict_alone(predictor: Predictor, case: _Begun, progress: Progress) -> Prediction | Failure:
    """Predicts a case from its beginning."""
    case.rows_done = case.inputs_done = 0
    try:
        report = partial(case.advance, progress=progress)
        for rows in predictor.rows([case.image], report, [case.scan.spacing_mm]):
            case.take(rows)
    except Exception as error:  # such as memory that the network does not get
        reason = f"{case.source.files[0]}: not predicted: {type(error).__name__}: {error}"
        return Failure(case.source, reason)
    return case.result()


def measure(prediction: Prediction, labels: Labels) -> tuple[str, list[float]]:
    """How large each foreground class is; `labels` says how to read the prediction's.

    Returns:
      The unit, "ml" of a volume or "mm2" of a slice, "voxels" or "px" where the spacing is not
      known; and a number for each class.
    """
    # part by part, as each takes eight bytes a pixel
    parts = (
        of_slice[i : i + 256]
        for of_slice in prediction.labels
        for i in range(0, len(of_slice), 256)
    )
    counts = np.sum([labels.count(part) for part in parts], axis=0)[1:].astype(float)
    spacing, volume = prediction.scan.spacing_mm, len(prediction.labels) > 1
    if spacing is None:
        return "voxels" if volume else "px", counts.tolist()
    if volume:
        return "ml", (counts * np.prod(spacing) / 1000).tolist()
    return "mm2", (counts * np.prod(spacing[1:])).tolist()


def find_unusual(prediction: Prediction, labels: Labels, classes: Sequence[str]) -> list[str]:
    """What a person should look at: nothing found, or a class that the border cuts off.

    Args:
      prediction: of a case.
      labels: how its labels are to be read.
      classes: names, background first.
    """
    found = prediction.labels
    if not found.any():
        return ["nothing found"]
    edges = [np.take(found, end, axis) for axis in (1, 2) for end in (0, -1)]
    if len(found) > 1:  # a single slice has no border along the volume
        edges += [found[0], found[-1]]
    return [
        f"{name} touches the border"
        for number, name in enumerate(classes[1:], start=1)
        if any(labels.mask(edge, number).any() for edge in edges)
    ]
