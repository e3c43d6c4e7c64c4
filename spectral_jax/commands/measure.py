"""Measures a trained network beyond its scores: when it is wrong, and how far to trust it.

    spectral-jax measure --workdir=runs/quickstart --what=robustness,calibration
    spectral-jax measure --workdir=runs/quickstart --what=explanations --feature=decoder0
    spectral-jax measure --workdir=runs/kvasir_unet --what=analysis --on=cvc_clinicdb

robustness      Dice and recall on corrupted images, by kind and severity
calibration     do probabilities mean what they say, as trained and after temperature scaling
explanations    where in the image the evidence for each class lies (class activation maps)
interactions    how many patches of an image the network combines
analysis        missed objects, confusion, hard shapes, unusual cases

Each writes `<measurement>/<data set>-<split>.json` in the run's folder and prints its main numbers.
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from absl import flags as absl_flags
from etils import epath

from spectral_jax.commands import flags
from spectral_jax.commands.evaluate import chosen_data
from spectral_jax.data.sources import Split
from spectral_jax.evaluation import analysis, calibrate, explain, interactions, robustness
from spectral_jax.inference.trained import TrainedModel, restore
from spectral_jax.training import distributed, run
from spectral_jax.training.config import ConfigError


class Measurement(NamedTuple):
    """What can be measured.

    Attributes:
      folder: of its results, in the run's.
      measure: from the network, a split, the records that it was trained on and the run's folder.
      headline: its main numbers, for the terminal.
    """

    folder: str
    measure: Callable[..., dict[str, Any]]
    headline: Callable[[dict[str, Any]], str]


def without_own_data(measure: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A measurement that does not look at what the network was trained on."""

    def measured(
        trained: TrainedModel, split: Split, own: pathlib.Path, workdir: epath.Path, **options: Any
    ) -> dict[str, Any]:
        return measure(trained, split, workdir, **options)

    return measured


def _calibration(
    trained: TrainedModel, split: Split, own: pathlib.Path, workdir: epath.Path, **options: Any
) -> dict[str, Any]:
    validation = Split(own, "validation")
    return calibrate.measure_calibration(trained, split, validation, workdir, **options)


def _analysis(
    trained: TrainedModel, split: Split, own: pathlib.Path, workdir: epath.Path, **options: Any
) -> dict[str, Any]:
    training = Split(own, "train")
    return analysis.analyse_errors(trained, split, workdir, reference_split=training, **options)


def _calibration_headline(result: dict[str, Any]) -> str:
    before, after = (result["regions"]["all"][state]["ece"] for state in calibrate.STATES)
    return (
        f"ECE {before:.4f} as trained, {after:.4f} with the temperature {result['temperature']:.3f}"
    )


def _analysis_headline(result: dict[str, Any]) -> str:
    rates = result["missed_object_rate"].items()
    return "objects missed: " + ", ".join(
        f"{name} {of['missed']} of {of['objects']}" for name, of in rates
    )


MEASUREMENTS = {
    "robustness": Measurement(
        robustness.FOLDER,
        without_own_data(robustness.measure_robustness),
        lambda result: (
            f"Dice {result['clean']['dice']:.4f} clean, {result['mean_corrupted_dice']:.4f} "
            "corrupted, on average"
        ),
    ),
    "calibration": Measurement(calibrate.FOLDER, _calibration, _calibration_headline),
    "explanations": Measurement(
        explain.FOLDER,
        without_own_data(explain.measure_explanations),
        lambda result: (
            f"energy inside the true class {result['summary']['energy_inside']['mean']:.4f}, "
            f"by chance {result['summary']['chance']:.4f}"
        ),
    ),
    "interactions": Measurement(
        interactions.FOLDER,
        without_own_data(interactions.measure_interactions),
        lambda result: f"share of the middle orders {result['middle_share']:.4f}",
    ),
    "analysis": Measurement(analysis.FOLDER, _analysis, _analysis_headline),
}


def options_of(
    name: str, max_cases: int | None = None, feature: str | None = None, method: str | None = None
) -> dict[str, Any]:
    """Those of the options that were given and that a measurement has, as it calls them."""
    given: dict[str, Any] = {"max_cases": max_cases}
    if name == "interactions":
        given = {"images": max_cases}
    elif name == "explanations":
        given |= {"feature": feature, "method": method}
    elif name == "analysis":  # is of all cases
        given = {}
    return {key: value for key, value in given.items() if value is not None}


def chosen(names: Iterable[str]) -> list[str]:
    """The measurements of a flag.

    Raises:
      ConfigError: for one that is not known.
    """
    names = list(names)
    for name in names:
        if name not in MEASUREMENTS:
            raise ConfigError(f"--what={name}: choose from {', '.join(MEASUREMENTS)}")
    return names


def main() -> None:
    names = chosen(WHAT.value)
    JOIN()
    workdir = flags.path(WORKDIR)
    config = run.read_config(workdir).data
    trained = restore(workdir, CHECKPOINT.value)
    own = run.prepare_data(config)
    own_split = SPLIT.value or config.scored_split
    for records, dataset, part in chosen_data(workdir, ON.value, own_split, SPLIT.value or "all"):
        split = Split(records, part)
        if dataset == trained.data.name:
            run.check_data(workdir, split.info)
        for name in names:
            folder, measure, headline = MEASUREMENTS[name]
            options = options_of(name, MAX_CASES.value, FEATURE.value, METHOD.value)
            with distributed.only_writer(workdir / folder, wait=True):
                result = measure(
                    *(trained, split, own, workdir),
                    checkpoint=CHECKPOINT.value,
                    dataset=dataset,
                    **options,
                )
            if distributed.is_first():
                file = workdir / folder / f"{dataset}-{split.name}.json"
                print(f"{name}: {headline(result)}; {file}", flush=True)


if __name__ == "__main__":
    WORKDIR = flags.define_workdir()
    JOIN = flags.define_processes()
    WHAT = absl_flags.DEFINE_list(
        "what", None, f"What to measure, of {', '.join(MEASUREMENTS)}.", required=True
    )
    ON = flags.define_on()
    SPLIT = flags.define_split()
    CHECKPOINT = flags.define_checkpoint()
    MAX_CASES = absl_flags.DEFINE_integer(
        "max_cases",
        None,
        "At most so many cases, evenly spaced. Without, explanations take 20, interactions 10, and "
        "the others all, as analysis always does.",
        lower_bound=1,
    )
    FEATURE = absl_flags.DEFINE_string(
        "feature", None, "Of the network, for explanations, such as decoder0; bottleneck without."
    )
    METHOD = absl_flags.DEFINE_enum(
        "method", None, [*explain.METHODS, explain.ROLLOUT], "Of explanations."
    )
    flags.run(main)
