"""Lungs in chest X-rays of Montgomery County (USA) and Shenzhen (China).

Images lie in `CXR_png` or `cxr`, masks in `ManualMask/{leftMask,rightMask}`, `mask` or `masks`,
anywhere below the root; the name tells the site. `site` chooses "montgomery", "shenzhen" or "both".
There is no official split: it is split by picture, of which a patient has one.
"""

from functools import partial
from pathlib import Path

import numpy as np

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded, Partner
from spectral_jax.data.pictures import read_binary_mask, read_image
from spectral_jax.data.volumes import DataError

PREFIX = {"montgomery": "MCU", "shenzhen": "CHN", "both": "(?:MCU|CHN)"}
OFFICIAL = {"montgomery": 138, "shenzhen": 566, "both": 138 + 566}


def read(root: Path, site: str = "both") -> Found:
    """Finds the pictures of a site."""
    if site not in PREFIX:
        raise DataError(f"site={site!r}: expected {', '.join(PREFIX)}")
    name = rf"({PREFIX[site]}CXR_\d{{4}}_[01])"
    images = files.find(root, rf"(?:.*/)?(?:cxr|CXR_png)/{name}\.png")
    if not images:
        raise files.missing_layout(root, "CXR_png/*.png and their masks, of the site asked for")
    lungs = [
        files.find(root, rf"(?:.*/)?{folder}/{name}(?:_mask)?\.png")
        for folder in ("masks?", "leftMask", "rightMask")
    ]
    cases, unmarked = [], 0
    for case, image in images.items():
        masks = [side[case] for side in lungs if case in side]
        if masks:
            cases.append(Case(case, (image, *masks), partial(_load, image, masks)))
        elif case.startswith("CHN"):  # 96 of the 662 pictures of Shenzhen were not outlined
            unmarked += 1
        else:
            raise DataError(f"{image}: there is no mask for {case!r}")
    notes = [f"{unmarked} pictures of Shenzhen have no mask: they are left out"]
    return Found({"all": cases}, OFFICIAL[site], notes if unmarked else [])


def _load(image_path: Path, mask_paths: list[Path]) -> Loaded:
    image = read_image(image_path)
    label = np.zeros(image.shape[:2], np.uint8)
    for path in mask_paths:
        mask = read_binary_mask(path)
        files.check_size(image[..., 0], image_path, mask, path)
        label |= mask
    return Loaded(image[None], label[None])


DATASET = Dataset(
    name="montgomery_shenzhen",
    description="Lungs in chest X-rays of two sites.",
    modality="chest X-ray",
    channels=1,
    classes=("background", "lung"),
    licence="research with citation",
    source="lhncbc.nlm.nih.gov (Tuberculosis chest X-ray sets) and, for Shenzhen, the masks of "
    "kaggle.com/yoctoman/shcxr-lung-mask: FOLDER/MontgomerySet, FOLDER/ChinaSet_AllFiles.",
    read=read,
    test="a fifth of the pictures (ours)",
    partners=(
        Partner(
            "montgomery_shenzhen", {"lung": "lung"}, "country, machine", {"site": "montgomery"}
        ),
    ),
)
