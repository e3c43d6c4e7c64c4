"""After the network: of some classes only the largest connected component is kept."""

from collections.abc import Collection
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt
from scipy import ndimage

from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.files import read_json

FILE = "postprocess.json"
DECIDE_AGAIN = "delete it, and run spectral-jax train with the same options again"


def keep_largest(
    label: UInt[np.ndarray, "depth height width"], labels: Labels, numbers: Collection[int]
) -> UInt[np.ndarray, "depth height width"]:
    """Takes away all but the largest component of some classes; voxels at corners are neighbours.

    Args:
      label: of a case; one slice for a picture.
      labels: how to read it.
      numbers: of the classes.

    >>> row = np.array([[[1, 0, 1, 1, 0, 2]]], np.uint8)
    >>> keep_largest(row, Labels(2), [1]).tolist()
    [[[0, 0, 1, 1, 0, 2]]]
    """
    for number in numbers:
        components, count = ndimage.label(labels.mask(label, number), np.ones((3, 3, 3)))
        if count > 1:
            sizes = np.bincount(components.ravel())
            largest = 1 + sizes[1:].argmax()
            islands = (components > 0) & (components != largest)
            label = labels.without(label, number, islands)
    return label


def read_decision(workdir: epath.Path, data: DatasetInfo) -> tuple[int, ...]:
    """Numbers of the classes of a run of which only the largest component is kept.

    None, where nothing was decided.

    Raises:
      ValueError: for a damaged file.
    """
    file = workdir / FILE
    if not file.exists():
        return ()
    decision: dict[str, Any] = read_json(file, DECIDE_AGAIN)
    try:
        return tuple(data.classes.index(name) for name in decision["largest_component"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error!r}): {DECIDE_AGAIN}") from error
