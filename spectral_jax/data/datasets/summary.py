"""What lies beside prepared records: a summary, checksums of the raw files, a contact sheet."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw
from scipy import ndimage

from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import SUMMARY_FILE, Split, resize_image, resize_label
from spectral_jax.files import read_json, write_json

PREPARE_AGAIN = "delete its folder, and prepare the data set again"
CHECKSUMS_FILE = "SHA256SUMS"
SHEET_FILE = "contact_sheet.png"
SHEET_COLUMNS = 6
SHEET_PIXELS = 208
SHEET_MARGIN = 4
SHEET_HEAD = 18


@dataclasses.dataclass(frozen=True)
class CaseStatistics:
    """Figures of a case.

    Attributes:
      name: of the case.
      shape: depth, height, width.
      spacing_mm: or None where unknown.
      intensity: lowest, mean and highest stored value.
      voxels: how many count.
      class_voxels: how many of them are of each class; those of none are background.
      present: `[records, classes]`, whether a record holds a class.
      checksums: SHA-256 of each file.
      notes: of the case as it was loaded.
    """

    name: str
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    intensity: tuple[float, float, float]
    voxels: int
    class_voxels: np.ndarray
    present: np.ndarray
    checksums: Mapping[Path, str]
    notes: tuple[str, ...] = ()


Statistics = dict[str, list[CaseStatistics]]


def measure(
    case: Case, loaded: Loaded, labels: Sequence[np.ndarray], coding: Labels
) -> CaseStatistics:
    """Figures of a case, given the labels of its records."""
    counts = [coding.count(label) for label in labels]
    image = loaded.image
    return CaseStatistics(
        name=case.name,
        shape=loaded.label.shape,
        spacing_mm=loaded.spacing_mm,
        intensity=(float(image.min()), float(image.mean()), float(image.max())),
        voxels=int(coding.valid(loaded.label).sum()) if coding.ignore else loaded.label.size,
        class_voxels=coding.count(loaded.label),
        present=np.array(counts) > 0,
        checksums={path: _checksum(path) for path in case.files},
        notes=loaded.notes,
    )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remarks(found: Found) -> list[str]:
    """What a user should know: how much of the official set is there, and the reader's notes."""
    there = sum(map(len, found.splits.values()))
    part = []
    if found.official is not None and there < found.official:
        part = [f"a part of the official set: {there} of {found.official} cases"]
    return [*part, *found.notes]


def observations(statistics: Statistics, dataset: Dataset) -> list[str]:
    """What a user should know of the cases as they were read."""
    classes = dataset.classes or ()
    cases = [case for split in statistics.values() for case in split]
    notes: dict[str, list[str]] = {}
    for case in cases:
        for note in case.notes:
            notes.setdefault(note, []).append(case.name)
    lines = [
        f"{note} ({len(names)} of {len(cases)} cases, such as {names[0]})"
        for note, names in notes.items()
    ]
    for split, members in {"": cases, " of the train split": statistics.get("train", ())}.items():
        if members:
            voxels = np.sum([case.class_voxels for case in members], axis=0)
            absent = [
                name for name, count in list(zip(classes, voxels, strict=True))[1:] if not count
            ]
            if absent:
                lines.append(
                    f"no mask{split} holds {', '.join(absent)}: there is nothing to learn of it; "
                    "look whether the masks, their values and their format are as expected"
                )
                break
    if dataset.ignore_label is not None and all(
        case.voxels == np.prod(case.shape) for case in cases
    ):
        lines.append(
            f"no mask holds ignore_label={dataset.ignore_label}: all pixels count; look whether "
            "masks are read as class numbers, which black and white ones of official sets are not"
        )
    return lines


def write(
    folder: Path,
    dataset: Dataset,
    found: Found,
    statistics: Statistics,
    root: Path | None,
    options: Mapping[str, Any],
) -> list[str]:
    """Writes the three files, and returns the remarks."""
    notes = [*remarks(found), *observations(statistics, dataset)]
    lines = _checksum_lines(statistics, root)
    (folder / CHECKSUMS_FILE).write_text("".join(lines))
    summary = {
        "dataset": dataset.name,
        "options": dict(options),
        "modality": dataset.modality,
        "classes": dict(zip(dataset.classes or (), dataset.colors, strict=True)),
        "intensity": dataset.intensity,
        "channel_names": dataset.channel_names,
        "licence": dataset.licence,
        "official_cases": found.official,
        "remarks": notes,
        "splits": {
            name: _describe(cases, dataset.classes or ()) for name, cases in statistics.items()
        },
        "files": {
            "count": len(lines),
            "sha256_of_checksums": hashlib.sha256("".join(lines).encode()).hexdigest(),
        },
    }
    write_json(folder / SUMMARY_FILE, summary)
    contact_sheet(folder, statistics).save(folder / SHEET_FILE, compress_level=1)
    return notes


def read_options(folder: Path) -> dict[str, Any]:
    """The options that records were prepared with, as far as JSON keeps their types."""
    options = read_json(folder / SUMMARY_FILE, PREPARE_AGAIN)["options"]
    return {key: value for key, value in options.items() if not isinstance(value, list | dict)}


def read_class_share(folder: Path) -> list[float]:
    """Each class's share of the training split's pixels that count, the background first."""
    summary = read_json(folder / SUMMARY_FILE, PREPARE_AGAIN)
    return list(summary["splits"]["train"]["class_share"].values())


def _checksum_lines(statistics: Statistics, root: Path | None) -> list[str]:
    """As `sha256sum --check` reads them in the folder of raw files."""
    checksums: dict[Path, str] = {}
    for cases in statistics.values():
        for case in cases:
            checksums |= case.checksums
    return [f"{checksums[path]}  {_below(path, root)}\n" for path in sorted(checksums)]


def _below(path: Path, root: Path | None) -> str:
    if root is None:
        return path.name
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _describe(cases: Sequence[CaseStatistics], classes: Sequence[str]) -> dict[str, Any]:
    shapes = np.array([case.shape for case in cases])
    spacings = np.array([case.spacing_mm for case in cases if case.spacing_mm])
    voxels = np.sum([case.class_voxels for case in cases], axis=0)
    counted = max(1, sum(case.voxels for case in cases))
    low, mean, high = np.array([case.intensity for case in cases]).T
    return {
        "cases": len(cases),
        "records": sum(len(case.present) for case in cases),
        "size": _ranges(shapes),
        "spacing_mm": _ranges(spacings) if len(spacings) == len(cases) else None,
        "class_share": dict(zip(classes, (voxels / counted).tolist(), strict=True)),
        "cases_with_class": dict(
            zip(classes, np.sum([case.class_voxels > 0 for case in cases], 0).tolist(), strict=True)
        ),
        "intensity": {"lowest": low.min(), "mean_of_cases": mean.mean(), "highest": high.max()},
    }


def _ranges(values: np.ndarray) -> dict[str, list[float]]:
    axes = ("depth", "height", "width")
    return {
        axis: [column.min().item(), column.max().item()]
        for axis, column in zip(axes, values.T, strict=True)
    }


def contact_sheet(folder: Path, statistics: Statistics) -> Image.Image:
    """A row of random records for each class, with the labels filled lightly and outlined."""
    splits = {name: Split(folder, name) for name in statistics}
    info = next(iter(splits.values())).info
    present = {
        name: np.concatenate([case.present for case in cases]) for name, cases in statistics.items()
    }
    rng = np.random.default_rng(0)
    step = SHEET_PIXELS + SHEET_MARGIN
    height = (len(info.classes) - 1) * (step + SHEET_HEAD)
    sheet = Image.new("RGB", (SHEET_COLUMNS * step + SHEET_MARGIN, height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(info.classes[1:], start=1):
        top = (row - 1) * (step + SHEET_HEAD)
        choices = [
            (name, record) for name in splits for record in np.flatnonzero(present[name][:, row])
        ]
        draw.rectangle((SHEET_MARGIN, top + 4, SHEET_MARGIN + 10, top + 14), info.colors[row])
        draw.text((SHEET_MARGIN + 16, top + 3), f"{label}: {len(choices)} records", "black")
        chosen = rng.permutation(len(choices))[:SHEET_COLUMNS]
        for column, (name, record) in enumerate(choices[index] for index in chosen):
            image, labels = splits[name].slice(record)
            coding = splits[name].info.labels
            labels = np.where(coding.mask(labels, row), np.uint8(row), coding.topmost(labels))
            left = SHEET_MARGIN + column * step
            sheet.paste(_overlay(image, labels, row, info.colors), (left, top + SHEET_HEAD))
            caption = f"{splits[name].case_name(record)} ({name})"
            draw.text((left + 2, top + SHEET_HEAD + 2), caption[-34:], "white", stroke_width=1,
                      stroke_fill="black")  # fmt: skip
    return sheet


def _overlay(
    image: np.ndarray, labels: np.ndarray, number: int, colors: Sequence[str]
) -> Image.Image:
    """The whole record, or a window of it where the class would be nothing but outline."""
    picture, edge = _paint(image, labels, number, colors)
    if edge.sum() > (resize_label(labels, edge.shape) == number).sum() / 3:
        rows, columns = np.nonzero(labels == number)
        middle = rows[len(rows) // 2], columns[len(rows) // 2]
        corner = [
            max(0, min(center - SHEET_PIXELS // 2, size - SHEET_PIXELS))
            for center, size in zip(middle, labels.shape, strict=True)
        ]
        window = tuple(slice(start, start + SHEET_PIXELS) for start in corner)
        picture, _ = _paint(image[window], labels[window], number, colors)
    return picture


def _paint(
    image: np.ndarray, labels: np.ndarray, number: int, colors: Sequence[str]
) -> tuple[Image.Image, np.ndarray]:
    """The picture at the size of the sheet, and where the outline of a class is."""
    scale = SHEET_PIXELS / max(labels.shape)
    size = tuple(max(1, round(scale * length)) for length in labels.shape)
    image, labels = resize_image(image, size), resize_label(labels, size)
    if image.shape[-1] != 3:  # of several channels the first
        image = image[..., :1]
    pixels = image.astype(np.float32) * (255 / np.iinfo(image.dtype).max)
    pixels = np.broadcast_to(pixels, (*size, 3)).copy()
    for other in {number, *np.unique(labels[(labels > 0) & (labels < len(colors))])}:
        mask = labels == other
        edge = mask & ~ndimage.binary_erosion(mask)
        color = np.array(ImageColor.getrgb(colors[other]), np.float32)
        pixels[mask] = 0.8 * pixels[mask] + 0.2 * color
        pixels[edge] = color
        if other == number:
            outline = edge
    return Image.fromarray(pixels.astype(np.uint8)), outline
