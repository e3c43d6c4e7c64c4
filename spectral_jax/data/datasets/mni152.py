"""The ICBM 152 T1 template with its tissue maps: real MRI that comes with `pip install nilearn`.

Axial slices of one head, so the splits are slabs: test above validation above train, with a gap
between them because neighbouring slices look alike. It shows that everything works; being an
average of 152 brains, it is no benchmark.
"""

import importlib.util
import pathlib
from functools import partial

import nibabel
import numpy as np

from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded
from spectral_jax.data.volumes import DataError

CLASSES = ("background", "grey matter", "white matter")
SPLITS = {  # slices along the axis from foot to head, 1 mm apart
    "train": range(24, 92),
    "validation": range(97, 105),
    "test": range(110, 130),
}


def template_folder() -> pathlib.Path:
    """The folder inside the nilearn package that holds the template, found without importing it."""
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data set 'mni152' comes with nilearn: pip install nilearn")
    return pathlib.Path(spec.submodule_search_locations[0]) / "datasets" / "data"


def read(root: None) -> Found:
    """Cases are axial slices, two-dimensional pictures of 1 mm pixels."""
    folder = template_folder()
    files = [
        folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        for kind in ("t1", "gm", "wm")
    ]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: missing; this nilearn ships no template, try another version")
    t1, grey, white = (np.asarray(nibabel.load(file).dataobj) for file in files)
    # the maps are probabilities times 255; what they leave over is background
    background = 255 - np.minimum(255, grey.astype(np.int16) + white)
    label = np.stack([background, grey, white]).argmax(0).astype(np.uint8)

    def load(z: int):
        # a row is a step from front to back, a column from left to right
        image, mask = (np.flip(volume[:, :, z].T, 0) for volume in (t1, label))
        return Loaded(image[None, ..., None].copy(), mask[None].copy(), (1.0, 1.0, 1.0))

    return Found(
        {
            split: [Case(f"axial_{z:03d}", tuple(files), partial(load, z)) for z in slices]
            for split, slices in SPLITS.items()
        }
    )


DATASET = Dataset(
    name="mni152",
    description="Grey and white matter in axial slices of the ICBM 152 T1 template.",
    modality="T1 MRI",
    channels=1,
    classes=CLASSES,
    licence="ICBM 152 2009a symmetric, McConnell Brain Imaging Centre, free for any use with its "
    "notice",
    source="The nilearn wheel: pip install nilearn.",
    test="the highest slab of slices",
    read=read,
    orientation="RPS",  # rows run from front to back
    needs_root=False,
)
