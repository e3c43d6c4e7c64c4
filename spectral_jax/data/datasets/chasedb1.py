"""CHASEDB1 retinal vessels: `Image_01L.jpg`, `Image_01L_1stHO.png`, both eyes of 14 children.

The first observer is the truth. As is usual, the first ten children are for training.
"""

from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Partner

TRAINING_CHILDREN = 10


def read(root: Path) -> Found:
    """Finds the pictures; both eyes of a child stay together."""
    images = files.find(root, r"(Image_\d{2}[LR])\.jpg")
    if not images:
        raise files.missing_layout(root, "Image_01L.jpg and Image_01L_1stHO.png")
    pairs = files.pair(images, files.find(root, r"(Image_\d{2}[LR])_1stHO\.png"))
    splits: dict[str, list[Case]] = {"train": [], "test": []}
    for name, pair in pairs.items():
        child = int(name[6:8])
        splits["train" if child <= TRAINING_CHILDREN else "test"].append(
            files.picture_case(name, pair, group=f"child_{child:02d}")
        )
    return Found(splits, official=28)


DATASET = Dataset(
    name="chasedb1",
    description="Retinal vessels in fundus pictures of children.",
    modality="fundus photography",
    channels=3,
    classes=("background", "vessel"),
    licence="CC BY 4.0 as far as known",
    source="blogs.kingston.ac.uk/retinal/chasedb1: FOLDER/Image_*.{jpg,png}.",
    read=read,
    test="the last 8 of 28 pictures",
    partners=(
        Partner("drive", {"vessel": "vessel"}, "camera, field of view, children against adults"),
    ),
)
