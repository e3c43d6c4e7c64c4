r"""Segments your own files with a trained network.

    spectral-jax predict --workdir=example --input=example --output=masks --overlays
    spectral-jax predict --workdir=runs/kvasir_unet --input=pictures --output=masks
    spectral-jax predict --workdir=runs/hippocampus_3d --input=a.nii.gz,b.nii.gz \
        --output=masks --overlays

"example" is a small network that comes with the package, for grey and white matter in slices of
T1-weighted MRI of the head, and slices to try it on.

Reads PNG, JPEG, TIFF, BMP and GIF pictures, NIfTI, HDF5 and npz (`image`, 0 ... 1), and DICOM
series; folders with all that is below them. Writes class numbers in the same format, size and
geometry: PNG for a JPEG, a NIfTI file and a DICOM segmentation for a series. A line for each case,
and a row of `summary.csv`, tell the volume in ml, or the area in mm2 or pixels, of each class, and
what is unusual: nothing found, or a class that touches the border.

A file that is damaged, or cannot be what the network was trained on, is reported and skipped. Exit
status: 0 if every case was done, 4 if some failed, 2 if nothing could start.
"""

import collections
import csv
import io
import logging
import os
import pathlib
import sys
import textwrap
import time
import warnings
from collections.abc import Sequence

import numpy as np
from absl import flags as absl_flags
from PIL import Image
from tqdm import tqdm

from spectral_jax.commands import flags
from spectral_jax.data.datasets.files import plain
from spectral_jax.data.labels import fullest_slice
from spectral_jax.data.pictures import in_8_bits
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.data.volumes import INTENSITIES, DataError
from spectral_jax.files import write_text, written_whole
from spectral_jax.inference import cases
from spectral_jax.inference.cases import Failure, Prediction
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel, restore_all
from spectral_jax.lock import only_writer
from spectral_jax.reporting import overlays

EXIT_SOME_FAILED = 4
SECONDS_BETWEEN_LINES = 10


def split_paths(texts: Sequence[str]) -> list[pathlib.Path]:
    """Paths with commas between them; a name may hold commas too, where there is such a file."""
    paths = []
    for text in texts:
        parts = text.split(",")
        while parts:
            count = flags.count_together(parts, lambda name: os.path.lexists(as_spelled(name)))
            name = ",".join(parts[:count]).strip()
            if name.strip(", "):  # "" would be the present folder
                paths.append(as_spelled(name))
            parts = parts[count:]
    return paths


def as_spelled(name: str) -> pathlib.Path:
    """The path of that name; or of one that differs only in how its accents are written."""
    path = pathlib.Path(name).expanduser()
    if os.path.lexists(path) or name.isascii() or not os.path.isdir(path.parent):
        return path
    siblings = (entry for entry in path.parent.iterdir() if plain(entry.name) == plain(path.name))
    return next(siblings, path)


def save(prediction: Prediction, output: pathlib.Path, trained: TrainedModel) -> list[pathlib.Path]:
    """Writes what was asked for, each file as a whole, and returns the files of labels.

    Overlapping classes have a file each, in a folder of the class's name.
    """
    name, scan = prediction.source.name, prediction.scan
    labels, data = trained.labels, trained.data
    stem = output / name
    if prediction.probabilities is not None:
        scan.write_probabilities(prediction.probabilities, stem)
    if OVERLAYS.value:
        with written_whole(stem.with_name(stem.name + "_overlay.png")) as temporary:
            Image.fromarray(draw_overlay(prediction, trained)).save(temporary)
    if not labels.overlapping:
        return scan.write_labels(prediction.labels, stem, data.classes, data.colors)
    return [
        file
        for number in range(1, len(data.classes))
        for file in scan.write_labels(
            labels.mask(prediction.labels, number).astype(np.uint8),
            output / data.classes[number] / name,
            (data.classes[0], data.classes[number]),
            (data.colors[0], data.colors[number]),
        )
    ]


def draw_overlay(prediction: Prediction, trained: TrainedModel) -> np.ndarray:
    """The slice with the most foreground, with its classes outlined; the middle one without any."""
    found = prediction.labels
    index = fullest_slice(found) if found.any() else len(found) // 2
    image = in_8_bits(prediction.image[index])
    labels = trained.labels.topmost(prediction.labels[index])
    return overlays.draw_labels(
        image, labels, trained.data.colors, overlays.screen_size(image.shape)
    )


def describe(result: Prediction | Failure, output: pathlib.Path, trained: TrainedModel) -> dict:
    """Writes what was found in a case, and returns its row of the summary."""
    row = {"input": str(result.source.files[0])}
    try:
        if isinstance(result, Failure):
            raise DataError(result.reason)
        files = save(result, output, trained)
        row["output"] = ";".join(map(str, files if trained.labels.overlapping else files[:1]))
        row["unit"], sizes = cases.measure(result, trained.labels)
        by_class = dict(zip(trained.data.classes[1:], sizes, strict=True))
        unusual = cases.find_unusual(result, trained.labels, trained.data.classes)
        row["unusual"] = "; ".join(unusual)
        parts = [f"{name} {_rounded(size)} {row['unit']}" for name, size in by_class.items()]
        print_case(result.source.name, [", ".join(parts), *unusual])
        return row | {name: f"{size:g}" for name, size in by_class.items()}
    except DataError as error:
        row["error"] = str(error)
    except Exception as error:  # such as a name too long for its folder, or a full disk
        row["error"] = f"{row['input']}: not written: {error}"
    tqdm.write(f"not done: {row['error']}", file=sys.stderr)
    return row


def print_case(name: str, parts: Sequence[str]) -> None:
    """Prints a case's line without tearing the progress bar."""
    text = f"{name}: {'; '.join(parts)}"
    wrapper = textwrap.TextWrapper(
        flags.COLUMNS, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    tqdm.write(wrapper.fill(text))


def _rounded(size: float) -> str:
    return f"{size:,.0f}" if size >= 100 or size == int(size) else f"{size:.3g}"


def write_summary(file: pathlib.Path, rows: Sequence[dict[str, str]], data: DatasetInfo) -> None:
    """Writes a row for each case: its files, and the size of each class or why there is none."""
    text = io.StringIO(newline="")
    columns = ["input", "output", "unit", *data.classes[1:], "unusual", "error"]
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(file, text.getvalue())


class Progress:
    """A bar of all cases, with the tiles, slices or patches of the present one; or plain lines."""

    def __init__(self, cases: int, inputs: str):
        self._bar = tqdm(
            total=cases,
            desc="predict",
            disable=not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )
        self._cases, self._inputs = cases, inputs
        self._finished = 0
        self._said = self._start = time.monotonic()

    def show(self, case: str, done: int, of: int) -> None:
        """So many of a case's inputs are done."""
        text = f"{case}: {done} of {of} {self._inputs}"
        so_far = f"{self._finished} of {self._cases} cases"
        self._bar.set_postfix_str(f"{so_far}, {text}", refresh=False)
        self._move_to(self._finished + done / of)
        now = time.monotonic()
        if self._bar.disable and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            seconds = now - self._start
            print(f"{so_far} done after {seconds:.0f} s; {text}", file=sys.stderr, flush=True)

    def finish(self) -> None:
        """A case is written, or cannot be."""
        self._finished += 1
        so_far = f"{self._finished} of {self._cases} cases"
        self._bar.set_postfix_str(so_far, refresh=False)
        self._move_to(self._finished)
        if self._finished == self._cases:
            self._bar.close()

    def _move_to(self, cases: float) -> None:
        self._bar.update(max(0, cases - self._bar.n))


def main() -> None:
    # what it says of files that break small rules, or that one decoder of several does not read
    warnings.filterwarnings("ignore", module="pydicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    paths = [flags.or_example(path, "pictures") for path in split_paths(INPUT.value)]
    output = pathlib.Path(OUTPUT.value).expanduser()
    workdirs = [*map(flags.or_example, flags.paths(WORKDIR))]
    trained = restore_all(workdirs, CHECKPOINT.value)
    data = trained.data
    sources = cases.find_sources(paths, output, len(data.channel_names))
    predictor = Predictor(
        trained,
        BATCH_SIZE.value,
        flips=TTA.value,
        tiles=TILES.value,
        threshold=THRESHOLD.value,
    )
    progress = Progress(len(sources), predictor.inputs)
    results = cases.predict_sources(
        predictor,
        data,
        sources,
        intensity=INTENSITY.value or "",
        probabilities=PROBABILITIES.value,
        progress=progress.show,
    )
    rows = []
    notes: collections.Counter[str] = collections.Counter()
    with only_writer(output):
        for result in results:
            if isinstance(result, Prediction):
                notes.update(result.scan.notes)
            rows.append(describe(result, output, trained))
            progress.finish()
        write_summary(output / "summary.csv", rows, data)
    failed = sum("error" in row for row in rows)
    if trained.largest:
        classes = ", ".join(trained.largest_component)
        print(f"note: only the largest component is kept of {classes}; in probabilities all are")
    for note, count in notes.items():
        print(f"note: {note} ({count} of {len(rows)} cases)")
    print(f"{len(rows) - failed} of {len(rows)} cases done: {output / 'summary.csv'}")
    if failed:
        sys.exit(EXIT_SOME_FAILED)


if __name__ == "__main__":
    WORKDIR = flags.define_workdirs()
    INPUT = absl_flags.DEFINE_multi_string(
        "input",
        None,
        "Files and folders, with commas between; may be given several times.",
        required=True,
    )
    OUTPUT = absl_flags.DEFINE_string("output", None, "Folder of the results.", required=True)
    CHECKPOINT = flags.define_checkpoint()
    PROBABILITIES = absl_flags.DEFINE_bool(
        "probabilities", False, "Write the probability of each class: NIfTI, or npz of pictures."
    )
    OVERLAYS = absl_flags.DEFINE_bool(
        "overlays", False, "Write a picture of the labels over the image, of a volume one slice."
    )
    TTA = absl_flags.DEFINE_bool("tta", False, "Average over mirror images.")
    TILES = absl_flags.DEFINE_bool(
        "tiles",
        False,
        "Cut pictures larger than the training size into tiles of it, instead of shrinking.",
    )
    THRESHOLD = flags.define_threshold()
    INTENSITY = absl_flags.DEFINE_enum(
        "intensity",
        None,
        list(INTENSITIES),
        "How to scale intensities, if not as in the training data.",
    )
    BATCH_SIZE = absl_flags.DEFINE_integer(
        "batch_size", 8, "Slices or patches computed at once.", lower_bound=1
    )
    flags.run(main)
