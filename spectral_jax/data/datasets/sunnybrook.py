"""Sunnybrook Cardiac Data as pictures, in the layout of SegNetCMR.

`{Train,Test}/Images/<any folder>/SC-HF-I-01-IM-0001-0048.dcm.png`, and the same in `Labels`. A case
is a slice of one phase; its patient comes first in its name. Masks are the left ventricle's cavity.
"""

from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Dataset, Found, Partner

PICTURES = 805  # of 45 patients
SLICE = r"(SC-(?:HF-I|HF-NI|HYP|N)-\d+)-IM-(\d+-\d+)\.dcm\.png"


def read(root: Path) -> Found:
    """Finds the slices of both parts."""
    splits = {}
    for split, folder in (("train", "Train"), ("test", "Test")):
        images = files.find(root, rf"(?:.*/)?{folder}/Images/(?:.*/)?{SLICE}")
        masks = files.find(root, rf"(?:.*/)?{folder}/Labels/(?:.*/)?{SLICE}")
        if images or masks:
            splits[split] = [
                files.picture_case(name.replace("_", "-IM-"), pair, group=name.partition("_")[0])
                for name, pair in files.pair(images, masks).items()
            ]
    if not splits:
        raise files.missing_layout(
            root, "Train and Test, in each Images/*/SC-HF-I-01-IM-0001-0048.dcm.png and Labels"
        )
    return Found(splits, official=PICTURES)


DATASET = Dataset(
    name="sunnybrook",
    description="The left ventricle's cavity in cardiac cine MRI, slices of 45 patients.",
    modality="cardiac cine MRI",
    channels=1,
    classes=("background", "left ventricle"),
    licence="CC0",
    source="github.com/mshunshin/SegNetCMR, folder Data: FOLDER/{Train,Test}/{Images,Labels}/*/*."
    "dcm.png. The DICOM files that they were made from: cardiacatlas.org.",
    read=read,
    test="part 3, 15 of 45 patients",
    partners=(
        Partner("acdc", {"left ventricle": "left ventricle"}, "hospital, scanner, diseases"),
    ),
)
