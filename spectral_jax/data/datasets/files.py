"""Finding the files of a data set, and cases made of them."""

import codecs
import contextlib
import dataclasses
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spectral_jax.data import geometry, pictures, volumes
from spectral_jax.data.datasets.dataset import Case, Loaded
from spectral_jax.data.geometry import Grid, Turn
from spectral_jax.data.volumes import DataError, Nifti

Pair = tuple[Path, Path]
Masks = Path | tuple[Path, ...]  # of all classes, or of each of some
Images = Path | tuple[Path, ...]  # of all channels, or a grey one for each
Masked = tuple[Images, Masks]
ReadMask = Callable[[Any], np.ndarray]  # of Masks
OUR_FOLDERS = ({"dataset_info.json", "features.json"}, {"config.json", "versions.json"})
TO_HOUNSFIELD = "subtract what was added to them, often 1000 or 1024"
PICTURE = r"(?:png|jpe?g|tiff?|bmp|gif)"


def walk(folder: Path) -> list[Path]:
    """All files below a folder, in order; through links to folders too, and links to nothing.

    Folders of runs and of prepared sets are left out: nothing in them is raw.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            folders.clear()
            continue
        if any(marks <= set(names) for marks in OUR_FOLDERS):
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found += [
            path for name in names if (path := Path(place, name)).is_file() or path.is_symlink()
        ]
    return sorted(found)


def find(folder: Path, pattern: str) -> dict[str, Path]:
    """Files whose path below `folder` matches a regular expression as a whole, by its groups.

    The ending counts in lower case. Other files are of no interest; two of one name are an error.
    """
    found: dict[str, Path] = {}
    for path in visible_files(folder):
        place = plain(path.relative_to(folder).as_posix())
        place = re.sub(r"(\.nii|\.npy)?\.\w+$", lambda ending: ending[0].lower(), place, flags=re.I)
        if match := re.fullmatch(pattern, place):
            name = "_".join(match.groups())
            if name in found:
                raise DataError(f"{path}: a second file for {name!r}, beside {found[name]}")
            found[name] = path
    return found


def visible_files(folder: Path) -> Iterator[Path]:
    """Files below a folder in order, but for those that systems and notebooks hide there."""
    for path in walk(folder):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
            yield path


def plain(name: str) -> str:
    """A name with its accents composed (NFC), as macOS does not always write it.

    >>> plain("La\u0308sion") == "L\u00e4sion"
    True
    """
    return unicodedata.normalize("NFC", name)


def first_folder(root: Path, *choices: str) -> Path | None:
    """The first of some folders below `root` that is there."""
    return next((root / choice for choice in choices if (root / choice).is_dir()), None)


def and_others(paths: Sequence[Path], most: int = 10) -> str:
    """The end of an error about the first path: the names of others that have the same fault.

    >>> and_others([Path("x/a.png"), Path("x/b.png"), Path("x/c.png")], most=2)
    '; as for 2 others: b.png, ...'
    """
    others = paths[1:]
    if not others:
        return ""
    names = [path.name for path in others[: most - 1]] + ["..."] * (len(paths) > most)
    return f"; as for {len(others)} other{'s' * (len(others) > 1)}: {', '.join(names)}"


def missing_layout(root: Path, *expected: str) -> DataError:
    """The error for a folder that holds none of the layouts that are known."""
    return DataError(f"{root}: expected there {', or '.join(expected)}")


def read_list(path: Path) -> list[str]:
    """Names, one a line; the ending of a picture does not count."""
    return [re.sub(rf"\.{PICTURE}$", "", name, flags=re.I) for name in read_text(path).split()]


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or, as older Windows writes it, Latin-1.

    Raises:
      DataError: if the file is not there, or no text.
    """
    with volumes.named(path, "text file"):
        content = path.read_bytes()
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = content.decode("utf-16")
        elif content[1:2] == b"\0" or content[:1] == b"\0":  # without a mark of its order
            text = content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le")
        else:
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError:
                text = content.decode("cp1252", errors="replace")
        if "\0" in text:
            raise DataError(f"{path}: no text; expected UTF-8")
    return plain(text)


def pair(images: Mapping[str, Path], labels: Mapping[str, Path]) -> dict[str, Pair]:
    """Image and label of the same name."""
    if alone := [name for name in images if name not in labels]:
        files = [images[name] for name in alone]
        raise DataError(f"{files[0]}: there is no mask for {alone[0]!r}{and_others(files)}")
    if alone := [name for name in labels if name not in images]:
        files = [labels[name] for name in alone]
        raise DataError(
            f"{files[0]}: a mask without an image; expected one for {alone[0]!r}{and_others(files)}"
        )
    return {name: (images[name], labels[name]) for name in images}


def group_slices(files: Mapping[str, Path]) -> dict[str, list[Path]]:
    """Files named `<case>_<number>` by case, in the order of their numbers."""
    groups: dict[str, dict[int, Path]] = {}
    for name, path in files.items():
        case, _, number = name.rpartition("_")
        slices = groups.setdefault(case, {})
        if int(number) in slices:
            raise DataError(
                f"{path}: a second file for slice {number}, beside {slices[int(number)]}"
            )
        slices[int(number)] = path
    return {case: [slices[number] for number in sorted(slices)] for case, slices in groups.items()}


def picture_case(
    name: str, *pairs: Masked, group: str = "", read_mask: ReadMask = pictures.read_binary_mask
) -> Case:
    """A case of one picture, or of pictures that are the slices of a volume."""
    images, masks = (
        [path for paths in of for path in _paths(paths)] for of in zip(*pairs, strict=True)
    )
    return Case(name, (*images, *masks), partial(_load_pictures, pairs, read_mask), group)


def _paths(paths: Path | tuple[Path, ...]) -> tuple[Path, ...]:
    return (paths,) if isinstance(paths, Path) else paths


def read_channels(paths: Sequence[Path]) -> pictures.Picture:
    """Reads a picture, or grey pictures of one size as its channels."""
    first, *others = (pictures.read_picture(path) for path in paths)
    for path, other in zip(paths[1:], others, strict=True):
        if other.pixels.shape[:2] != first.pixels.shape[:2]:
            raise DataError(
                f"{path}: {other.pixels.shape[:2]} pixels, but {paths[0].name} of the same case "
                f"{first.pixels.shape[:2]}; the channels of a case have one size"
            )
    if others and any(picture.pixels.shape[-1] != 1 for picture in (first, *others)):
        raise DataError(f"{paths[0]}: colour in one of {len(paths)} files of a case; expected grey")
    pixels = np.concatenate([picture.pixels for picture in (first, *others)], axis=-1)
    return dataclasses.replace(first, pixels=pixels)


def _load_pictures(pairs: Sequence[Masked], read_mask: ReadMask) -> Loaded:
    images: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    notes: dict[str, None] = {}
    for image_paths, mask_paths in pairs:
        picture, mask = read_channels(_paths(image_paths)), read_mask(mask_paths)
        image_path, mask_path = _paths(image_paths)[0], _paths(mask_paths)[0]
        image = picture.pixels
        if picture.turned and mask.shape == image.shape[1::-1] != image.shape[:2]:
            raise DataError(
                f"{mask_path}: the mask fits {image_path.name} as it is stored, but viewers turn "
                "that by its EXIF orientation, and so is it read; turn the mask as well, or remove "
                "the orientation from the image (exiftool -Orientation= FILE)"
            )
        check_size(image[..., 0], image_path, mask, mask_path)
        notes |= dict.fromkeys(picture.notes)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise DataError(
                f"{image_path}: {image.shape}, but {_paths(pairs[0][0])[0].name} of the same case "
                f"is {images[0].shape}; slices of a volume have one size"
            )
        images.append(image)
        masks.append(mask)
    channels = max(image.shape[-1] for image in images)
    images = [
        pictures.fit_channels(image, channels, _paths(paths)[0])
        for image, (paths, _) in zip(images, pairs, strict=True)
    ]
    return Loaded(np.stack(images), np.stack(masks), notes=tuple(notes))


def array_case(name: str, *files: Path, group: str = "") -> Case:
    """A case of HDF5 or npz files with `image` (0 ... 1) and `label`: a volume, or its slices."""
    return Case(name, files, partial(_load_arrays, files), group)


def _load_arrays(files: Sequence[Path]) -> Loaded:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for path in files:
        image, label = volumes.read_arrays(path, "image", "label")
        check_size(image, path, label, path)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"{path}: {image.shape}, but {files[0].name} of the same case is {images[0].shape}"
            )
        if image.min() < 0 or image.max() > 1:
            raise DataError(
                f"{path}: intensities {image.min():g} ... {image.max():g}; expected 0 ... 1"
            )
        images.append(volumes.unit(image))
        labels.append(volumes.as_label(label, path))
    image, label = np.stack(images), np.stack(labels)
    if len(files) == 1 and image.ndim == 4:  # a whole volume
        image, label = image[0], label[0]
    if image.ndim != 3:
        raise DataError(f"{files[0]}: the shape {images[0].shape} is that of no slice, nor volume")
    return Loaded(image[..., None], label)


def nifti_name(path: Path) -> str:
    """The name of a NIfTI file without its ending; other dots are part of it."""
    return re.sub(r"(?i)\.nii(\.gz)?$", "", path.name)


def readable_headers(paths: Iterable[Path]) -> dict[Path, Nifti]:
    """Headers of NIfTI files; those that cannot be read are named when their cases are loaded."""
    headers = {}
    for path in paths:
        with contextlib.suppress(DataError):
            headers[path] = volumes.open_nifti(path)
    return headers


def common_orientation(headers: Mapping[Path, Nifti]) -> tuple[str, list[str]]:
    """The orientation for the images of a set, and notes on those that are stored otherwise."""
    grids = {path: header.grid for path, header in headers.items()}
    orientation = geometry.common_orientation(grids.values())
    notes = []
    if orientation == geometry.AS_ACQUIRED:
        notes.append("scans were acquired along different directions: each is sliced along its own")
    elif turned := [path for path, grid in grids.items() if grid.letters != orientation]:
        example = f"{turned[0].name} {grids[turned[0]].letters}"
        notes.append(
            f"{len(turned)} of {len(grids)} scans are stored in other axes than {orientation} "
            f"({example}) and were turned to it"
        )
    if unknown := [path.name for path, grid in grids.items() if not grid.known]:
        notes.append(
            f"{len(unknown)} of {len(grids)} scans say nothing of their orientation, such as "
            f"{unknown[0]}: taken as LAS, as nibabel does"
        )
    return orientation, notes


def nifti_case(
    name: str,
    images: Images,
    label: Path,
    *,
    intensity: str | Sequence[str],
    orientation: str,
    group: str = "",
    axes: tuple[int, int, int] = (2, 1, 0),
    volume: int | None = None,
    numbers: Mapping[int, int] | None = None,
    hounsfield: str = "",
) -> Case:
    """A case of NIfTI files.

    Args:
      name: of the case.
      images: the scan; of several channels, one file of all or a file for each.
      label: class numbers, on the grid of the scan or of a flipped or permuted one.
      intensity: a key of `spectral_jax.data.volumes.INTENSITIES`, or one for each channel.
      orientation: what the scan is turned to first: see `geometry.turn_to`.
      group: the patient.
      axes: which of the turned axes become depth, height and width.
      volume: which one to take of a scan that holds several.
      numbers: renumbers the label: see `volumes.relabel`.
      hounsfield: what to do where values of the rule "ct_window" are no Hounsfield units; "" if
        they need not be.
    """
    load = partial(
        _load_nifti,
        _paths(images),
        label,
        intensity=intensity,
        turn_to=partial(geometry.turn_to, orientation=orientation, axes=axes),
        volume=volume,
        numbers=numbers,
        hounsfield=hounsfield,
    )
    return Case(name, (*_paths(images), label), load, group)


def _load_nifti(
    image_paths: Sequence[Path],
    label_path: Path,
    *,
    intensity: str | Sequence[str],
    turn_to: Callable[[Grid], Turn],
    volume: int | None,
    numbers: Mapping[int, int] | None,
    hounsfield: str,
) -> Loaded:
    image_path = image_paths[0]
    if isinstance(intensity, str):
        image, grid, spacing_mm = volumes.read_nifti(image_path, volume)
        image = image[..., None]
    else:
        image, grid, spacing_mm = volumes.read_nifti_channels(image_paths, len(intensity))
    for index, rule in enumerate([intensity] if isinstance(intensity, str) else intensity):
        if hounsfield and rule == "ct_window":
            path = image_paths[index % len(image_paths)]
            volumes.check_hounsfield(image[..., index], path, hounsfield)
    notes = [note for path in image_paths for note in volumes.open_nifti(path).notes]
    notes += [volumes.BLANK] if volumes.is_blank(image) else []
    label, label_grid = volumes.read_nifti_label(label_path)
    try:
        label, note = geometry.bring_label(label, label_grid, grid)
    except ValueError as error:
        raise DataError(
            f"{label_path}: {error} ({image_path}). Resample it onto the image's grid (nearest "
            "neighbour), or, if voxels fit as they are stored, save it with the image's affine"
        ) from None
    label = volumes.as_label(label, label_path)
    if numbers is not None:
        label = volumes.relabel(label, numbers, label_path)
    turn = turn_to(grid)
    depth, height, width = (grid.shape[axis] for axis in turn.axes)
    if min(height, width) < 2:
        raise DataError(
            f"{image_path}: {depth} slices of {height} x {width} pixels; expected at least 2 x 2"
        )
    return Loaded(
        volumes.scale(turn.apply(image), intensity),
        turn.apply(label),
        geometry.turned_sides(spacing_mm, turn),
        notes=tuple(dict.fromkeys([*notes, *([note] if note else [])])),
    )


def check_size(image: np.ndarray, image_path: Path, label: np.ndarray, label_path: Path) -> None:
    """Raises DataError unless image and label have one size."""
    if image.shape != label.shape:
        raise DataError(
            f"{label_path}: the mask is {'x'.join(map(str, label.shape))}, its image "
            f"{image_path.name} {'x'.join(map(str, image.shape))}"
        )


def only(folder: Path, *names: str) -> Path:
    """The one file of some names that is in a folder."""
    there = [folder / name for name in names if (folder / name).is_file()]
    if not there:
        raise DataError(f"{folder / names[0]}: no such file")
    if len(there) > 1:
        raise DataError(f"{there[1]}: a second file for this case, beside {there[0]}")
    return there[0]
