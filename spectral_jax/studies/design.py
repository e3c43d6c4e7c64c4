"""What a study is: arms that differ in a few values, trained alike on the same seeds."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

Changes = Mapping[str, Any]  # values of a configuration by dotted name

WEIGHT = 0.3
# twin: midband's spatial twin, without which its gain cannot be called spectral
SPECTRAL = {
    "none": "none",
    "paper": "paper",
    "midband": "midband",
    "twin": "concordance",
    "mcc": "matthews",
    "focal_frequency": "focal_frequency",
}


@dataclasses.dataclass(frozen=True)
class Study:
    """An experiment.

    Attributes:
      title: for the page.
      config: what the arms share.
      arms: what each changes, by its name, which names files too.
      seeds: of every arm.
      on: data sets to test on, out of distribution; all of their cases are.
      split: of the data set trained on, to measure on.
      measurements: which are made, and their arguments: "evaluation", without which there are no
        scores, "calibration", "robustness", "analysis", "explanation", "interactions".
      show_images: whether the licence allows pictures of cases on a page that is passed on.
    """

    title: str
    config: ConfigDict
    arms: Mapping[str, Changes]
    seeds: Sequence[int]
    on: Sequence[str] = ()
    split: str = "test"
    measurements: Mapping[str, Mapping[str, Any]] = dataclasses.field(
        default_factory=lambda: {"evaluation": {}}
    )
    show_images: bool = False


def make_arms(
    names: Sequence[str], *, weight: float = WEIGHT, suffix: str = "", **changes: Any
) -> dict[str, Changes]:
    """Arms that differ in the spectral term alone, at one weight.

    Args:
      names: keys of `SPECTRAL`.
      weight: of the term.
      suffix: of the arms' names.
      **changes: what these arms have in common, `section__key=value`.
    """
    shared = {name.replace("__", ".", 1): value for name, value in changes.items()}
    return {
        name + suffix: shared
        | {"objective.spectral": SPECTRAL[name]}
        | ({} if name == "none" else {"objective.weight": weight})
        for name in names
    }
