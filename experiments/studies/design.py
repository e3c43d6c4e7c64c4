"""What a study is: arms that differ in their loss, trained alike on several seeds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

# beside the objective's two readings, the spatial twin and the other frequency loss as controls
SPECTRAL = {
    "none": "none",
    "paper": "paper",
    "midband": "midband",
    "mcc": "matthews",
    "focal_frequency": "focal_frequency",
}
WEIGHT = 0.3
# of measurements that take many predictions, for two CPU cores
SMALL_LIMITS: dict[str, dict[str, Any]] = {
    "robustness": {"max_cases": 6},
    "explanation": {"max_cases": 8},
    "interactions": {"images": 5},
}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
      changes: values of the study's configuration by dotted name.
      baseline: the arm that it is compared with; its own name for a baseline.
      seeds: as many runs, from seed 0 on.
    """

    changes: Mapping[str, Any]
    baseline: str
    seeds: int


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment.

    Attributes:
      title: for the page.
      config: what the arms share.
      arms: by name, which names their folders too.
      on: data sets to test on, out of distribution; all of their cases are.
      limits: arguments of the measurements by name: "robustness", "calibration", "explanation",
        "interactions"; what is left out of them is measured in full.
      show_images: whether the licence allows pictures of cases on a page that is passed on.
    """

    title: str
    config: ConfigDict
    arms: Mapping[str, Arm]
    on: tuple[str, ...] = ()
    limits: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    show_images: bool = False


def make_arms(
    spectral: tuple[str, ...], seeds: int, *, prefix: str = "", **changes: Any
) -> dict[str, Arm]:
    """Arms that differ in the spectral term alone, at one weight; "none" is their baseline.

    Args:
      spectral: keys of `SPECTRAL`.
      seeds: of each arm.
      prefix: of their names.
      **changes: what these arms have in common, `section__key=value`.
    """
    shared = {name.replace("__", ".", 1): value for name, value in changes.items()}
    return {
        prefix + name: Arm(
            changes=shared
            | {"objective.spectral": SPECTRAL[name]}
            | ({} if name == "none" else {"objective.weight": WEIGHT}),
            baseline=f"{prefix}none",
            seeds=seeds,
        )
        for name in spectral
    }
