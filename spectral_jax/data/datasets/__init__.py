"""Data sets by name, each from its official files."""

from spectral_jax.data.datasets import (
    acdc,
    chasedb1,
    cvc_clinicdb,
    decathlon,
    drive,
    dsb2018,
    folder,
    glas,
    isic2018,
    kvasir_seg,
    mni152,
    montgomery_shenzhen,
    monuseg,
    nnunet,
    ph2,
    sunnybrook,
    synapse,
)
from spectral_jax.data.datasets.builder import find_prepared, prepare
from spectral_jax.data.datasets.dataset import Case, Dataset, Found, Loaded, Partner, label_map
from spectral_jax.data.volumes import DataError

# the paper's kinds of data, more of these kinds, anyone's
_MODULES = (
    *(synapse, acdc, isic2018, ph2, kvasir_seg, cvc_clinicdb, glas, monuseg),
    *(dsb2018, drive, chasedb1, montgomery_shenzhen, sunnybrook),
    *(mni152, decathlon, nnunet, folder),
)
DATASETS: dict[str, Dataset] = {module.DATASET.name: module.DATASET for module in _MODULES}

__all__ = [
    "DATASETS",
    "Case",
    "DataError",
    "Dataset",
    "Found",
    "Loaded",
    "Partner",
    "find_prepared",
    "label_map",
    "prepare",
]
