"""Scores as tables: intervals by bootstrap, a row for each case, and CSV and LaTeX for papers."""

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Rows = Sequence[Mapping[str, Any]]

RESAMPLES = 2000
LEVEL = 0.95
FEWEST_UNITS = 10  # below, an interval by bootstrap is too narrow to rely on
MEAN = "mean of classes"
# of an evaluation's rows: title, digits, and by what a value is multiplied in LaTeX
COLUMNS = {
    "dice": ("Dice", 3, 100),
    "iou": ("IoU", 3, 100),
    "precision": ("Precision", 3, 100),
    "recall": ("Recall", 3, 100),
    "hd95": ("HD95", 2, 1),
    "assd": ("ASSD", 2, 1),
    "nsd": ("NSD", 3, 100),
}
OF_PAPERS = ("dice", "iou", "hd95", "assd", "nsd")
IN_VOXELS = ("true_voxels", "predicted_voxels")
LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
}


class Interval(NamedTuple):
    """Where a mean lies, were other patients drawn."""

    low: float
    high: float


def unit_of(row: Mapping[str, Any]) -> str:
    """The patient or video that a row is of; of older results, the case."""
    return row.get("group") or row["case"]


def count_units(rows: Rows) -> int:
    """How many patients or videos there are."""
    return len({unit_of(row) for row in rows})


def bootstrap(rows: Rows, classes: Sequence[str], metric: str) -> dict[str, Interval | None]:
    """Percentile intervals of the mean over cases of each class, and of the mean over classes.

    Whole patients or videos are drawn with replacement, with all their cases, 2000 times; always
    the same draws, so that a page is the same when it is made again. None where fewer than two of
    them have a value.
    """
    units = {name: number for number, name in enumerate(dict.fromkeys(map(unit_of, rows)))}
    sums, counts = np.zeros((2, len(classes), len(units)))
    for row in rows:
        value = row.get(metric)
        if value is not None and math.isfinite(value):
            place = classes.index(row["class"]), units[unit_of(row)]
            sums[place] += value
            counts[place] += 1
    shares = np.full(len(units), 1 / len(units))
    drawn = np.random.default_rng(0).multinomial(len(units), shares, RESAMPLES)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no case of a class may be drawn
        means = (drawn @ sums.T) / (drawn @ counts.T)
        means = np.column_stack([means, np.nanmean(means, axis=1)])
        ends = np.nanpercentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    known = [*((counts > 0).sum(1) > 1), (counts > 0).any(0).sum() > 1]
    return {
        name: Interval(float(low), float(high)) if defined else None
        for name, low, high, defined in zip([*classes, MEAN], *ends, known, strict=True)
    }


def by_case(rows: Rows, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each case, the worst mean Dice first, those without any last."""
    cases: dict[str, dict[str, Any]] = {}
    for row in rows:
        case = cases.setdefault(row["case"], {"case": row["case"], "unit": unit_of(row)})
        case.setdefault("dice", {})[row["class"]] = _finite(row.get("dice"))
        case.setdefault("hd95", {})[row["class"]] = _finite(row.get("hd95"))
    for case in cases.values():
        for metric in ("dice", "hd95"):
            values = [case[metric].get(name, math.nan) for name in classes]
            defined = [value for value in values if not math.isnan(value)]
            case[f"mean_{metric}"] = float(np.mean(defined)) if defined else math.nan
    return sorted(cases.values(), key=lambda of: (math.isnan(of["mean_dice"]), of["mean_dice"]))


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def cases_csv(rows: Rows) -> str:
    """A line for each case and class; what is undefined is empty."""
    metrics = [key for key in (*COLUMNS, "dice_transunet", "hd95_transunet") if key in rows[0]]
    head = ["case", "group", "class", *metrics, *(key for key in IN_VOXELS if key in rows[0])]
    return _csv(head, [{**row, "group": unit_of(row)} for row in rows])


def classes_csv(evaluation: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """A line for each class and metric, with the mean over classes last."""
    head = ["class", "metric", "mean", "sd", "low", "high", "count", "undefined"]
    statistics = {**evaluation["by_class"], MEAN: evaluation["summary"]}
    lines = []
    for name, of in statistics.items():
        for metric in (metric for metric in COLUMNS if metric in of):
            interval = intervals[metric][name]
            ends = interval._asdict() if interval else {}
            lines.append({"class": name, "metric": metric} | of[metric] | ends)
    return _csv(head, lines)


def _csv(head: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, head, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def classes_latex(evaluation: Mapping[str, Any], intervals: Mapping[str, Any]) -> str:
    """A table for the package booktabs: means, and below them their intervals."""
    metrics = [metric for metric in OF_PAPERS if metric in evaluation["summary"]]
    unit = evaluation["distance_unit"]
    titles = []
    for metric in metrics:
        title, _, scale = COLUMNS[metric]
        titles.append(f"{title} ({'%' if scale == 100 else unit})")
    units = count_units(evaluation["cases"])
    cases = len({row["case"] for row in evaluation["cases"]})
    lines = [
        f"% {evaluation['dataset']}, {evaluation['split']}: {cases} cases of {units} patients, "
        f"videos or pictures; checkpoint of step {evaluation['checkpoint']['step']}",
        f"% in brackets: {100 * LEVEL:g} % intervals by bootstrap over these {units}",
        f"\\begin{{tabular}}{{l{'c' * len(metrics)}}}",
        r"\toprule",
        _latex_row(["Class", *titles]),
        r"\midrule",
    ]
    statistics = {**evaluation["by_class"], MEAN: evaluation["summary"]}
    for name, of in statistics.items():
        lines += [r"\midrule"] if name == MEAN else []
        lines.append(_latex_row([name, *(_latex_cell(of, intervals, m, name) for m in metrics)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(of: Mapping[str, Any], intervals: Mapping[str, Any], metric: str, name: str) -> str:
    mean = of[metric]["mean"]
    if mean is None or math.isnan(mean):
        return "--"
    _, digits, scale = COLUMNS[metric]
    digits = 1 if scale == 100 else digits
    text, interval = f"{scale * mean:.{digits}f}", intervals[metric][name]
    if interval is None:
        return text
    return f"{text} [{', '.join(f'{scale * end:.{digits}f}' for end in interval)}]"


def _latex_row(cells: Sequence[str]) -> str:
    escaped = ("".join(LATEX.get(character, character) for character in cell) for cell in cells)
    return " & ".join(escaped) + r" \\"
