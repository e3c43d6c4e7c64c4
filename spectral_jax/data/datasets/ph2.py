"""PH2 skin lesions: `IMD002/{IMD002_Dermoscopic_Image/IMD002,IMD002_lesion/IMD002_lesion}.bmp`.

There is no official split: the whole set is for testing.
"""

from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Dataset, Found, Partner


def read(root: Path) -> Found:
    """Finds the pictures, wherever the root stands in the official tree."""
    images = files.find(root, r"(?:.*/)?IMD\d+_Dermoscopic_Image/(IMD\d+)\.bmp")
    if not images:
        raise files.missing_layout(root, "PH2 Dataset images/IMD002/IMD002_Dermoscopic_Image/*.bmp")
    masks = files.find(root, r"(?:.*/)?IMD\d+_lesion/(IMD\d+)_lesion\.bmp")
    pairs = files.pair(images, masks)
    cases = [files.picture_case(name, pair) for name, pair in pairs.items()]
    return Found({"test": cases}, official=200)


DATASET = Dataset(
    name="ph2",
    description="Skin lesions in dermoscopy, for testing.",
    modality="dermoscopy",
    channels=3,
    classes=("background", "lesion"),
    licence="research and education only",
    source="Ask for it at www.fc.up.pt/addi/ph2%20database.html and unpack: FOLDER/PH2Dataset.",
    read=read,
    test="all 200 cases",
    partners=(Partner("isic2018", {"lesion": "lesion"}, "centre, dermatoscope, magnification"),),
)
