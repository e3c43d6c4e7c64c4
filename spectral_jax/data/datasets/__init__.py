"""Data sets by name, each from its official files."""

from spectral_jax.data.datasets import folder, mni152
from spectral_jax.data.datasets.builder import Case, DataError, Dataset, prepare

DATASETS: dict[str, Dataset] = {
    module.DATASET.name: module.DATASET for module in (mni152, folder)
}

__all__ = ["DATASETS", "Case", "DataError", "Dataset", "prepare"]
