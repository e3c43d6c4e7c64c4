"""Calibration of a trained network, before and after temperature scaling, in the run's folder."""

import time
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int
from scipy import optimize

from spectral_jax.data.sources import Split
from spectral_jax.evaluation.cases import (
    MatchedCases,
    by_case,
    evenly_chosen,
    interruptible,
    require_softmax,
    result_header,
    write_result,
)
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.metrics.calibration import (
    BINS,
    Bins,
    CalibrationSums,
    accuracy,
    ace,
    brier,
    calibration_sums,
    dilated_union,
    ece,
    mce,
    nll,
    scale_temperature,
)
from spectral_jax.metrics.ranking import ranking_counts, recall_at_true_volume

FOLDER = "calibration"
REGIONS = ("all", "dilated_union")
STATES = ("as_trained", "temperature_scaled")
FIT_PIXELS = 100_000  # of the validation split; more do not move the temperature
TEMPERATURES = (0.05, 20.0)  # between which it is looked for


def measure_calibration(
    trained: TrainedModel,
    split: Split,
    validation_split: Split,
    workdir: epath.Path,
    *,
    max_cases: int | None = None,
    checkpoint: str = "best",
    dataset: str = "",
) -> dict[str, Any]:
    """Measures the calibration of a network's probabilities and writes the result.

    Probabilities are those at the original size, interpolated between pixels. The temperature is
    fitted on the validation split and applied to them.

    `calibration/<dataset>-<split>.json` holds, for all pixels and for the dilated union of truth
    and prediction, as trained and with the temperature: ECE, ACE, MCE, Brier score, NLL, the first
    three by class, and the reliability diagram of the top label; and a row for each case, where
    `ece_truth` and `accuracy_truth` are of the dilated truth, pixels that all networks share. Each
    row of `ranking` has the recall of a case and class at the true volume.

    Args:
      trained: the network.
      split: what to measure on, as for `evaluate`.
      validation_split: what to fit the temperature on, of the data set that it was trained on.
      workdir: the run's folder.
      max_cases: maximum number of cases of either split, evenly spaced; None for all.
      checkpoint: what the checkpoint is called in the result.
      dataset: what the data set is called in it; its own name by default.

    Returns:
      What is written.

    Raises:
      ValueError: for `max_cases` below 1, or as `evaluate`.
      Preempted: as `evaluate`.
    """
    start = time.perf_counter()
    require_softmax(trained, "calibration")
    classes = trained.data.classes
    predictor = Predictor(trained)
    # each process fits it alone, to the same bits
    fit_on = MatchedCases(trained, validation_split)
    fit_cases = evenly_chosen(validation_split.cases, max_cases)
    temperature = fit_temperature(*_validation_pixels(predictor, fit_on, fit_cases))
    cases = MatchedCases(trained, split)
    keys = [(region, state) for region in REGIONS for state in STATES]
    nothing = calibration_sums(np.empty((0, len(classes))), np.empty(0, int))

    def measure(name: str) -> dict[str, Any]:
        volume = cases.volume(name)
        sums = dict.fromkeys(keys, nothing)
        around_truth = dict.fromkeys(STATES, nothing)
        ranks = dict.fromkeys(cases.scored, ranking_counts(np.empty(0), np.empty(0, bool)))
        predicted = predictor.slices([volume.image], [volume.spacing_mm])
        valid = np.ones(volume.label.shape, bool) if volume.valid is None else volume.valid
        for probabilities, truth, counted in zip(predicted, volume.label, valid, strict=True):
            as_trained = cases.restrict_probabilities(probabilities)
            scaled = cases.restrict_probabilities(scale_temperature(probabilities, temperature))
            near = counted & dilated_union(as_trained.argmax(-1) * counted, truth)
            around = counted & dilated_union(truth, truth)
            for label in ranks:
                ranks[label] = ranks[label] + ranking_counts(
                    as_trained[counted][:, label], truth[counted] == label
                )
            for state, of_state in zip(STATES, (as_trained, scaled), strict=True):
                around_truth[state] += calibration_sums(of_state, truth, around)
                sums["all", state] += calibration_sums(of_state, truth, counted)
                sums["dilated_union", state] += calibration_sums(of_state, truth, near)
        everywhere, union = (sums[region, "as_trained"] for region in REGIONS)
        before, after = (around_truth[state] for state in STATES)
        row = {
            "case": name,
            "ece_all": ece(everywhere.top_label),
            "ece_union": ece(union.top_label),
            "brier": brier(everywhere),
            "nll": nll(everywhere),
            "ece_truth": ece(before.top_label),
            "ece_truth_scaled": ece(after.top_label),
            "accuracy_truth": accuracy(after.top_label),
        }
        ranking = [
            {
                "case": name,
                "class": classes[label],
                "recall_at_true_volume": recall_at_true_volume(counts),
            }
            for label, counts in ranks.items()
        ]
        return {"row": row, "ranking": ranking, "sums": [_as_lists(sums[key]) for key in keys]}

    found = by_case(evenly_chosen(split.cases, max_cases), measure, "calibration")
    # in the order of the cases, so that the number of processes does not change a bit
    totals = dict.fromkeys(keys, nothing)
    for of_case in found:
        for key, sums in zip(keys, of_case["sums"], strict=True):
            totals[key] += _from_lists(sums)
    scored = {classes[label]: label for label in cases.scored}
    result = {
        **result_header(trained, split, checkpoint, dataset),
        "temperature": temperature,
        "regions": {
            region: {state: _errors(totals[region, state], scored) for state in STATES}
            for region in REGIONS
        },
        "cases": [of_case["row"] for of_case in found],
        "ranking": [row for of_case in found for row in of_case["ranking"]],
        "max_cases": max_cases,
        "wall_seconds": time.perf_counter() - start,
    }
    write_result(workdir, FOLDER, result)
    return result


def fit_temperature(
    probabilities: Float[np.ndarray, "pixels classes"], truth: Int[np.ndarray, " pixels"]
) -> float:
    """The temperature T at which softmax(log p / T) has the least negative log-likelihood.

    Args:
      probabilities: of each class.
      truth: class numbers.

    Returns:
      T between the `TEMPERATURES`; above 1 the network is overconfident.
    """

    def loss(log_temperature: float) -> float:
        scaled = scale_temperature(probabilities, np.exp(log_temperature))
        return nll(calibration_sums(scaled, truth))

    found = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def _validation_pixels(
    predictor: Predictor, cases: MatchedCases, chosen: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and classes of pixels that are drawn evenly from each slice."""
    generator = np.random.default_rng(0)
    parts, truths = [], []
    with interruptible(len(chosen), "temperature") as advance:
        for name in chosen:
            volume = cases.volume(name)
            share = max(1, FIT_PIXELS // (len(chosen) * len(volume.label)))
            predicted = predictor.slices([volume.image], [volume.spacing_mm])
            valid = np.ones(volume.label.shape, bool) if volume.valid is None else volume.valid
            for probabilities, truth, counted in zip(predicted, volume.label, valid, strict=True):
                drawn = generator.integers(truth.size, size=min(share, truth.size))
                drawn = drawn[counted.ravel()[drawn]]
                parts.append(probabilities.reshape(truth.size, -1)[drawn])
                truths.append(truth.ravel()[drawn])
            advance(1)
    return np.concatenate(parts), np.concatenate(truths)


def _as_lists(sums: CalibrationSums) -> dict[str, Any]:
    """As JSON takes them, every digit kept."""
    return {name: np.asarray(of).tolist() for name, of in vars(sums).items()}


def _from_lists(values: dict[str, Any]) -> CalibrationSums:
    arrays: dict[str, Any] = {
        name: np.asarray(of) if isinstance(of, list) else of for name, of in values.items()
    }
    return CalibrationSums(**arrays)


def _errors(sums: CalibrationSums, scored: dict[str, int]) -> dict[str, Any]:
    def of(bins: Bins) -> dict[str, float]:
        return {"ece": ece(bins), "ace": ace(bins), "mce": mce(bins)}

    top = sums.top_label
    filled = np.where(top.count > 0, top.count, np.nan)  # the mean of an empty bin is undefined
    return {
        **of(top),
        "brier": brier(sums),
        "nll": nll(sums),
        "classwise": {name: of(sums.of_class(label)) for name, label in scored.items()},
        "reliability": {
            "edges": np.linspace(0, 1, BINS + 1).tolist(),
            "confidence": (top.confidence / filled).tolist(),
            "accuracy": (top.accuracy / filled).tolist(),
            "count": top.count.tolist(),
        },
    }
