"""Decides by validation what is done after the network, as nnU-Net does."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from etils import epath

from spectral_jax.data.sources import Split
from spectral_jax.evaluation.cases import MatchedCases, by_case
from spectral_jax.files import read_json, write_json
from spectral_jax.inference.postprocess import DECIDE_AGAIN, FILE, keep_largest
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel, restore
from spectral_jax.metrics import overlap
from spectral_jax.training import distributed
from spectral_jax.training.config import Config, ConfigError


def decide_largest(
    trained: TrainedModel, split: Split, workdir: epath.Path, checkpoint: str = "best"
) -> dict[str, Any]:
    """Decides for which classes only the largest component is kept, and writes it down.

    These are the classes whose mean Dice over the cases of the validation split, at their original
    size, is higher then. `postprocess.json` in the run's folder has them, and both means of each.

    Args:
      trained: the network.
      split: the validation split of its data set.
      workdir: the run's folder.
      checkpoint: what the network's checkpoint is called.
    """
    cases = MatchedCases(trained, split)
    labels = cases.labels
    predictor = Predictor(dataclasses.replace(trained, largest=()))

    def measure(name: str) -> list[list[float]]:
        volume = cases.volume(name)
        found = predictor.labels(volume.image, volume.spacing_mm)

        def dice(label: np.ndarray, number: int) -> float:
            masks = (cases.restrict(label, volume.valid), volume.label)
            return overlap.dice(
                overlap.mask_counts(*(labels.mask(m, number) for m in masks))
            ).item()

        return [
            [dice(found, number), dice(keep_largest(found, labels, [number]), number)]
            for number in range(1, len(trained.data.classes))
        ]

    scores = np.array(by_case(split.cases, measure, "largest component"))  # case, class, which
    means = {
        name: {"all": _mean(of_class[:, 0]), "largest": _mean(of_class[:, 1])}
        for name, of_class in zip(trained.data.classes[1:], scores.swapaxes(0, 1), strict=True)
    }
    decision: dict[str, Any] = {
        "largest_component": [
            name for name, of in means.items() if (of["largest"] or 0) > (of["all"] or 0) > 0
        ],
        "validation_dice": means,
        "cases": len(split.cases),
        "checkpoint": {"name": checkpoint, "step": trained.step},
    }
    if distributed.is_first():
        write_json(workdir / FILE, decision)
    distributed.wait_for_all("decided what is done after the network")
    return decision


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else None


def decide_if_asked(config: Config, data: pathlib.Path, workdir: epath.Path) -> bool:
    """Decides for the best checkpoint of a run, if its configuration says so and it is not done.

    Args:
      config: of the run.
      data: the records that it was trained on.
      workdir: its folder.

    Returns:
      Whether there was something to decide.
    """
    if config.train.postprocess == "none":
        return False
    trained = restore(workdir)
    file = workdir / FILE
    if file.exists() and read_json(file, DECIDE_AGAIN)["checkpoint"]["step"] == trained.step:
        return False
    try:
        split = Split(data, "validation")
    except ValueError as error:
        raise ConfigError(
            f"config.train.postprocess={config.train.postprocess!r} is decided on the validation "
            f"split: {error}"
        ) from error
    decision = decide_largest(trained, split, workdir)
    if distributed.is_first():
        classes = ", ".join(decision["largest_component"]) or "no class"
        print(f"only the largest component is kept of {classes}: {file}")
    return True
