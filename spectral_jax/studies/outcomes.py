"""Outcomes that arms are compared by, each from the rows of one run on one data set.

A row holds the scores of a case and class, or of a case (class ""): the columns of `scores.csv`.
An outcome gives each unit, patient or video, one value: the mean over the classes of a case, then
over the cases of the unit. What is undefined is NaN.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

Row = Mapping[str, Any]
ByUnit = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A score.

    Attributes:
      title: for people.
      of_run: takes it from a run's rows; nothing where it was not measured.
      higher_is_better: its direction.
      unit: "points", hundredths of a share; "distance"; or "nats".
      covariate: an outcome whose part in a difference is taken off it, by the line through the
        differences of all seeds and units.
    """

    title: str
    of_run: Callable[[Iterable[Row]], ByUnit]
    higher_is_better: bool = True
    unit: str = "points"
    covariate: str = ""


def _number(value: Any) -> float:
    return np.nan if value is None or value == "" else float(value)


def mean_defined(values: Iterable[float]) -> float:
    """Mean of the defined values; NaN without any."""
    defined = [value for value in values if value == value]
    return float(np.mean(defined)) if defined else np.nan


def by_unit(rows: Iterable[Row], value: Callable[[Row], float], *, of_class: bool) -> ByUnit:
    """Mean of `value` over a case's classes, then over a unit's cases.

    Args:
      rows: of one run on one data set.
      value: of a row; NaN is undefined.
      of_class: whether it is of the rows of a class, or of those of a whole case.
    """
    of_cases: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if bool(row["class"]) == of_class:
            cases = of_cases.setdefault(row["group"], {})
            cases.setdefault(row["case"], []).append(value(row))
    return {
        unit: mean_defined(mean_defined(values) for values in cases.values())
        for unit, cases in of_cases.items()
    }


def _column(rows: Iterable[Row], name: str, *, of_class: bool = True) -> ByUnit:
    rows = list(rows)
    if not any(_number(row.get(name)) == _number(row.get(name)) for row in rows):
        return {}
    return by_unit(rows, lambda row: _number(row.get(name)), of_class=of_class)


def _distance(rows: Iterable[Row]) -> ByUnit:
    """HD95; undefined for a unit in which a class is missed or invented, not only absent."""
    rows = list(rows)
    failed = {
        row["group"]
        for row in rows
        if row["class"]
        and _number(row.get("hd95")) != _number(row.get("hd95"))
        and _number(row["dice"]) == _number(row["dice"])
    }
    return _column(rows, "hd95") | dict.fromkeys(failed, np.nan)


def _corruption_change(rows: Iterable[Row]) -> ByUnit:
    rows = [row for row in rows if _number(row.get("corrupted_dice")) >= 0]
    return by_unit(
        rows, lambda row: _number(row["corrupted_dice"]) - _number(row["dice"]), of_class=True
    )


def _confusion(rows: Iterable[Row]) -> ByUnit:
    def share(row: Row) -> float:
        true = _number(row["true_voxels"])
        return _number(row["confused_voxels"]) / true if true > 0 else np.nan

    return by_unit(rows, share, of_class=True)


def _spread_within_class(rows: Iterable[Row]) -> ByUnit:
    """Distance of a unit's Dice from the median over units, class by class."""
    by_class: dict[str, list[Row]] = {}
    for row in rows:
        if row["class"]:
            by_class.setdefault(row["class"], []).append(row)
    distances: dict[str, list[float]] = {}
    for of_class in by_class.values():
        dice = _column(of_class, "dice")
        middle = np.nanmedian(list(dice.values())) if dice else np.nan
        for unit, value in dice.items():
            distances.setdefault(unit, []).append(abs(value - middle))
    return {unit: mean_defined(values) for unit, values in distances.items()}


def _lower(title: str, of_run: Callable[[Iterable[Row]], ByUnit], **more: Any) -> Outcome:
    return Outcome(title, of_run, higher_is_better=False, **more)


def _of_case(name: str) -> Callable[[Iterable[Row]], ByUnit]:
    return partial(_column, name=name, of_class=False)


OUTCOMES = {
    "dice": Outcome("Dice", partial(_column, name="dice")),
    "recall": Outcome("Recall", partial(_column, name="recall")),
    "recall_at_true_volume": Outcome(
        "Recall at equal volume", partial(_column, name="recall_at_true_volume")
    ),
    "hd95": _lower("HD95", _distance, unit="distance"),
    "corruption_change": Outcome("Dice, corrupted less clean", _corruption_change),
    "ece_truth_scaled": _lower(
        "ECE after temperature scaling, around the truth", _of_case("ece_truth_scaled")
    ),
    "ece_equal_accuracy": _lower(
        "ECE after temperature scaling, at equal accuracy",
        _of_case("ece_truth_scaled"),
        covariate="accuracy_truth",
    ),
    "accuracy_truth": Outcome("Accuracy around the truth", _of_case("accuracy_truth")),
    "ece_union": _lower("ECE around objects, as trained", _of_case("ece_union")),
    "brier": _lower("Brier score", _of_case("brier")),
    "nll": _lower("Negative log likelihood", _of_case("nll"), unit="nats"),
    "intra_class": _lower("Spread of Dice within a class", _spread_within_class),
    "inter_class": _lower("Voxels given to another class", _confusion),
}
