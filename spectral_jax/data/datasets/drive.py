"""DRIVE retinal vessels: `{training,test}/images/21_training.tif`, `1st_manual/21_manual1.gif`.

The first observer is the truth. `mask`, the field of view, is not used: beyond it is no vessel.
"""

from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Partner


def read(root: Path) -> Found:
    """Finds the pictures of both parts."""
    splits: dict[str, list[Case]] = {}
    notes = []
    for split, folder in (("train", root / "training"), ("test", root / "test")):
        if not (folder / "1st_manual").is_dir():
            notes.append(f"no {folder.name}/1st_manual: this part is left out")
            continue
        pairs = files.pair(
            files.find(folder / "images", r"(\d+)_(?:training|test)\.tif"),
            files.find(folder / "1st_manual", r"(\d+)_manual1\.gif"),
        )
        splits[split] = [files.picture_case(name, pair) for name, pair in pairs.items()]
    if not splits:
        raise files.missing_layout(
            root, "training/{images,1st_manual} and test/{images,1st_manual}"
        )
    return Found(splits, official=40, notes=notes)


DATASET = Dataset(
    name="drive",
    description="Retinal vessels in fundus pictures of adults.",
    modality="fundus photography",
    channels=3,
    classes=("background", "vessel"),
    licence="research",
    source="Register at drive.grand-challenge.org and unpack: FOLDER/{training,test}/"
    "{images,1st_manual}.",
    read=read,
    test="the official 20 pictures",
    partners=(
        Partner("chasedb1", {"vessel": "vessel"}, "camera, field of view, adults against children"),
    ),
)
