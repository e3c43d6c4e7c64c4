"""Calibration of a trained network, before and after temperature scaling, in the run's folder."""

import sys
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Int
from scipy import optimize
from tqdm import tqdm

from spectral_jax.data.sources import Split
from spectral_jax.evaluation.evaluate import MatchedCases, require_softmax, spread, write_result
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
from spectral_jax.training import distributed

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

    Returns:
      What is written.

    Raises:
      ValueError: for `max_cases` below 1, or as `evaluate`.
    """
    start = time.perf_counter()
    require_softmax(trained, "calibration")
    classes = trained.data.classes
    predictor = Predictor(trained)
    # each process fits it alone, to the same bits
    fit_on = MatchedCases(trained, validation_split)
    fit_cases = spread(validation_split.cases, max_cases)
    temperature = fit_temperature(*_validation_pixels(predictor, fit_on, fit_cases))
    cases = MatchedCases(trained, split)
    chosen = spread(split.cases, max_cases)
    keys = [(region, state) for region in REGIONS for state in STATES]
    nothing = calibration_sums(np.empty((0, len(classes))), np.empty(0, int))
    totals = dict.fromkeys(keys, nothing)
    rows, ranking = [], []
    # processes take turns, as when they evaluate
    index, count = jax.process_index(), jax.process_count()
    quiet = not (distributed.is_first() and sys.stderr.isatty())
    for name in tqdm(chosen[index::count], unit="case", desc="calibration", disable=quiet):
        volume = cases.volume(name)
        of_case = dict.fromkeys(keys, nothing)
        around_truth = dict.fromkeys(STATES, nothing)
        ranks = dict.fromkeys(cases.scored, ranking_counts(np.empty(0), np.empty(0, bool)))
        predicted = predictor.slices([volume.image])
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
                of_case["all", state] += calibration_sums(of_state, truth, counted)
                of_case["dilated_union", state] += calibration_sums(of_state, truth, near)
        for key in keys:
            totals[key] += of_case[key]
        everywhere, union = (of_case[region, "as_trained"] for region in REGIONS)
        before, after = (around_truth[state] for state in STATES)
        for label, counts in ranks.items():
            recall = recall_at_true_volume(counts)
            ranking.append({"case": name, "class": classes[label], "recall_at_true_volume": recall})
        rows.append(
            {
                "case": name,
                "ece_all": ece(everywhere.top_label),
                "ece_union": ece(union.top_label),
                "brier": brier(everywhere),
                "nll": nll(everywhere),
                "ece_truth": ece(before.top_label),
                "ece_truth_scaled": ece(after.top_label),
                "accuracy_truth": accuracy(after.top_label),
            }
        )
    place = {name: position for position, name in enumerate(chosen)}
    parts = distributed.gather({"rows": rows, "ranking": ranking})
    rows, ranking = (
        sorted((row for part in parts for row in part[key]), key=lambda row: place[row["case"]])
        for key in ("rows", "ranking")
    )
    scored = {classes[label]: label for label in cases.scored}
    result = {
        "dataset": split.info.name,
        "split": split.name,
        "trained_on": trained.data.name,
        "classes": classes,
        "checkpoint": {"name": checkpoint, "step": trained.step},
        "temperature": temperature,
        "regions": {
            region: {
                state: _errors(_of_all_processes(totals[region, state]), scored) for state in STATES
            }
            for region in REGIONS
        },
        "cases": rows,
        "ranking": ranking,
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
    for name in chosen:
        volume = cases.volume(name)
        share = max(1, FIT_PIXELS // (len(chosen) * len(volume.label)))
        predicted = predictor.slices([volume.image])
        valid = np.ones(volume.label.shape, bool) if volume.valid is None else volume.valid
        for probabilities, truth, counted in zip(predicted, volume.label, valid, strict=True):
            drawn = generator.integers(truth.size, size=min(share, truth.size))
            drawn = drawn[counted.ravel()[drawn]]
            parts.append(probabilities.reshape(truth.size, -1)[drawn])
            truths.append(truth.ravel()[drawn])
    return np.concatenate(parts), np.concatenate(truths)


def _of_all_processes(sums: CalibrationSums) -> CalibrationSums:
    parts = distributed.gather({name: array.tolist() for name, array in vars(sums).items()})
    total, *others = [
        CalibrationSums(**{name: np.asarray(values) for name, values in part.items()})
        for part in parts
    ]
    for other in others:
        total += other
    return total


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
