"""Tables for papers: intervals that know their units, and files that other programs read."""

import csv
import io
import math
import re

import numpy as np
import pytest
from scipy import stats

from spectral_jax.metrics import METRICS, score_case, summarise
from spectral_jax.reporting import tables

CLASSES = ["left & right", "50% of_it #1"]


def make_rows(rng, groups, frames=1, spread=0.0):
    """Dice of two classes; frames of a group differ by `spread`."""
    rows = []
    for group in range(groups):
        for name in CLASSES:
            of_group = rng.uniform(0.4, 0.9)
            rows += [
                {"case": f"p{group}f{frame}", "group": f"p{group}", "class": name}
                | {"dice": of_group + spread * rng.normal()}
                for frame in range(frames)
            ]
    return rows


def test_the_interval_is_that_of_scipy(rng):
    rows = make_rows(rng, 30)
    found = tables.bootstrap(rows, CLASSES, "dice")
    by_class = {
        name: np.array([row["dice"] for row in rows if row["class"] == name]) for name in CLASSES
    }
    both = np.mean([*by_class.values()], axis=0)  # a unit has one value of each class
    for name, values in {**by_class, tables.MEAN: both}.items():
        expected = stats.bootstrap(
            (values,), np.mean, method="percentile", n_resamples=20_000, rng=rng
        ).confidence_interval
        width = expected.high - expected.low
        np.testing.assert_allclose(found[name], expected, atol=0.08 * width)


def test_frames_of_a_patient_are_no_new_patients(rng):
    rows = make_rows(rng, 12)
    twice = [row | {"case": f"{row['case']}{copy}"} for row in rows for copy in "ab"]
    assert tables.count_units(twice) == 12
    one, other = (tables.bootstrap(of, CLASSES, "dice") for of in (rows, twice))
    for name in (*CLASSES, tables.MEAN):
        np.testing.assert_allclose(one[name], other[name], atol=1e-12)


def test_nothing_is_said_where_there_is_one_patient_or_no_value(rng):
    rows = make_rows(rng, 1, frames=5)
    assert set(tables.bootstrap(rows, CLASSES, "dice").values()) == {None}
    rows = make_rows(rng, 5)
    for row in rows:
        if row["class"] == CLASSES[0] and row["group"] != "p2":
            row["dice"] = None
    found = tables.bootstrap(rows, CLASSES, "dice")
    assert found[CLASSES[0]] is None
    assert found[CLASSES[1]] is not None


@pytest.fixture
def evaluation(rng):
    rows = []
    for case in range(4):
        truth = np.zeros((12, 12), np.uint8)
        truth[2:6, 2:6] = 1
        if case:
            truth[8:11, 3:9] = 2
        prediction = np.roll(truth, int(rng.integers(0, 2)), axis=1)
        scores = score_case(prediction, truth, 3)
        rows += [{"case": f"c{case}", "class": n} | s for n, s in zip(CLASSES, scores, strict=True)]
    summary, by_class = summarise(rows)
    of = {"dataset": "d", "split": "test", "distance_unit": "px", "checkpoint": {"step": 7}}
    return of | {"cases": rows, "summary": summary, "by_class": by_class}


def intervals(evaluation):
    metrics = [metric for metric in tables.COLUMNS if metric in METRICS]
    return {m: tables.bootstrap(evaluation["cases"], CLASSES, m) for m in metrics}


def test_csv_holds_what_the_result_holds(evaluation):
    lines = [*csv.DictReader(io.StringIO(tables.cases_csv(evaluation["cases"])))]
    assert len(lines) == 8
    for line, row in zip(lines, evaluation["cases"], strict=True):
        assert (line["case"], line["group"], line["class"]) == (
            row["case"],
            row["case"],
            row["class"],
        )
        assert float(line["dice"] or math.nan) == pytest.approx(row["dice"], nan_ok=True)
        assert int(line["true_voxels"]) == row["true_voxels"]
    text = tables.classes_csv(evaluation, intervals(evaluation))
    lines = {(line["class"], line["metric"]): line for line in csv.DictReader(io.StringIO(text))}
    line = lines[CLASSES[1], "dice"]
    assert float(line["mean"]) == evaluation["by_class"][CLASSES[1]]["dice"]["mean"]
    assert (line["count"], line["undefined"]) == ("3", "1")
    assert float(line["low"]) <= float(line["mean"]) <= float(line["high"])
    assert float(lines[tables.MEAN, "hd95"]["mean"]) == evaluation["summary"]["hd95"]["mean"]


def test_latex_is_a_table_of_booktabs(evaluation):
    text = tables.classes_latex(evaluation, intervals(evaluation))
    body = text[text.index(r"\toprule") :]
    rows = [line for line in body.splitlines() if line.endswith(r" \\")]
    assert len(rows) == 1 + 2 + 1
    columns = re.search(r"\\begin\{tabular\}\{(l(c+))\}", text)[1]
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1
    assert r"left \& right & " in rows[1]
    assert r"50\% of\_it \#1 & " in rows[2]
    mean = 100 * evaluation["summary"]["dice"]["mean"]
    assert f"mean of classes & {mean:.1f} [" in rows[3]
    assert "Dice (\\%)" in rows[0]
    assert "HD95 (px)" in rows[0]


def test_cases_stand_with_the_worst_first(evaluation):
    rows = tables.by_case(evaluation["cases"], CLASSES)
    means = [row["mean_dice"] for row in rows]
    assert means == sorted(means)
    (one,) = (row for row in rows if row["case"] == "c0")
    assert math.isnan(one["dice"][CLASSES[1]])  # not there, so not counted
    assert one["mean_dice"] == one["dice"][CLASSES[0]]
