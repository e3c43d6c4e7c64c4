"""Kvasir-SEG polyps: `images/*.jpg` and `masks/*.jpg` of the same names, `train.txt`, `val.txt`.

The owners' list of 120 pictures, `val.txt`, is the test split. Without the lists, which are no part
of the archive, the pictures are re-split.
"""

from pathlib import Path

from spectral_jax.data.datasets import files
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Partner
from spectral_jax.data.volumes import DataError


def read(root: Path) -> Found:
    """Finds the pictures and the lists."""
    if not (root / "images").is_dir():
        raise files.missing_layout(root, "images/*.jpg and masks/*.jpg")
    pairs = files.pair(
        files.find(root / "images", r"(\w+)\.jpg"), files.find(root / "masks", r"(\w+)\.jpg")
    )
    cases = {name: files.picture_case(name, pair) for name, pair in pairs.items()}
    lists = {"train": root / "train.txt", "test": root / "val.txt"}
    if not all(path.is_file() for path in lists.values()):
        note = "train.txt and val.txt, the owners' split, are not there"
        return Found({"all": list(cases.values())}, official=1000, notes=[note])
    splits: dict[str, list[Case]] = {
        split: [cases[name] for name in files.read_list(path) if name in cases]
        for split, path in lists.items()
    }
    listed = {case.name for split in splits.values() for case in split}
    if unlisted := cases.keys() - listed:
        image = cases[min(unlisted)].files[0]
        raise DataError(f"{image}: neither in {lists['train'].name} nor in {lists['test'].name}")
    return Found(splits, official=1000)


DATASET = Dataset(
    name="kvasir_seg",
    description="Polyps in colonoscopy stills.",
    modality="colonoscopy",
    channels=3,
    classes=("background", "polyp"),
    licence="research and education only",
    source="datasets.simula.no/kvasir-seg: FOLDER/{images,masks}; and the lists train.txt and "
    "val.txt of github.com/DebeshJha/Kvasir-SEG: FOLDER/{train,val}.txt.",
    read=read,
    test="the owners' list of 120",
    partners=(
        Partner("cvc_clinicdb", {"polyp": "polyp"}, "hospital, endoscope, stills against video"),
    ),
)
