"""MoNuSeg nuclei: `Tissue Images/*.tif`, `Annotations/*.xml`; for testing `MoNuSegTestData/*`.

Nuclei are polygons, which are filled here; where a picture has no XML file, its mask in
`Binary_masks` is taken. Pictures below a folder whose name has "test" in it are for testing, whole;
training pictures are cut into overlapping squares of `tile` pixels, 0 for whole ones.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded, Partner
from spectral_jax.data.pictures import read_image
from spectral_jax.data.volumes import DataError, named

PATIENT_LETTERS = 12  # of TCGA-B0-5710-01Z-00-DX1
MARGIN = 5  # pixels by which an outline may cross the border


def read(root: Path, tile: int = 512) -> Found:
    """Finds the pictures and their outlines."""
    images = files.find(root, r"(?:.*/)?(TCGA-[\w-]+)\.tiff?")
    if not images:
        raise files.missing_layout(root, "Tissue Images/TCGA-*.tif and Annotations/TCGA-*.xml")
    masks = files.find(root, r"(?:.*/)?Binary_masks/(TCGA-[\w-]+)\.png")
    outlines = files.find(root, r"(?:.*/)?(TCGA-[\w-]+)\.xml")
    from_masks = (images.keys() & masks.keys()) - outlines.keys()
    pairs = files.pair(images, {name: masks[name] for name in from_masks} | outlines)
    splits: dict[str, list[Case]] = {"train": [], "test": []}
    for name, (image, label) in pairs.items():
        group = name[:PATIENT_LETTERS]
        if name in from_masks:
            case = files.picture_case(name, (image, label), group=group)
        else:
            case = Case(name, (image, label), partial(_load, image, label), group)
        folders = (root.name, *image.relative_to(root).parts[:-1])
        splits["test" if any("test" in folder.lower() for folder in folders) else "train"].append(
            case
        )
    notes = [f"pictures without XML file, whose Binary_masks are taken: {len(from_masks)}"]
    return Found(splits, official=30 + 14, notes=notes if from_masks else [], tile=tile)


def _load(image_path: Path, label_path: Path) -> Loaded:
    image = read_image(image_path)
    nuclei = fill_outlines(label_path, image.shape[0], image.shape[1])
    return Loaded(image[None], (nuclei > 0).astype(np.uint8)[None], instances=nuclei)


def fill_outlines(path: Path, height: int, width: int) -> np.ndarray:
    """Numbers the pixels inside each outline of an XML file, from 1; uint16."""
    picture = Image.new("I", (width, height))
    draw = ImageDraw.Draw(picture)
    for number, corners in enumerate(_outlines(path), start=1):
        x, y = zip(*corners, strict=True)
        if min(*x, *y) < -MARGIN or max(x) > width + MARGIN or max(y) > height + MARGIN:
            raise DataError(
                f"{path}: outline {number} reaches x {min(x):g} ... {max(x):g}, y {min(y):g} ... "
                f"{max(y):g}, outside its picture of {width}x{height}"
            )
        draw.polygon(corners, fill=number)
    return np.asarray(picture).astype(np.uint16)


def _outlines(path: Path) -> Iterator[list[tuple[float, float]]]:
    with named(path, "XML file"):  # a ParseError is a SyntaxError
        regions = ElementTree.parse(path).getroot().iter("Region")
        for region in regions:
            corners = [(float(v.attrib["X"]), float(v.attrib["Y"])) for v in region.iter("Vertex")]
            if len(corners) > 2:  # a slip of the pen has one or two
                yield corners


DATASET = Dataset(
    name="monuseg",
    description="Nuclei in histology of several organs.",
    modality="H&E histology",
    channels=3,
    classes=("background", "nucleus"),
    licence="CC BY-NC-SA 4.0",
    source="monuseg.grand-challenge.org/Data: FOLDER/MoNuSeg 2018 Training Data/{Tissue Images,"
    "Annotations} and FOLDER/MoNuSegTestData/*.{tif,xml}.",
    read=read,
    test="the official 14 pictures, whole",
    partners=(
        Partner(
            "dsb2018", {"nucleus": "nucleus"}, "laboratory, organ, stain", {"domain": "stained"}
        ),
    ),
)
