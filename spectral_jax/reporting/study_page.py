"""The page of a study, `report.html`, self-contained, and its tables for a README, `report.md`."""

import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from spectral_jax.files import read_json, write_text
from spectral_jax.reporting import study_charts
from spectral_jax.reporting.charts import INK
from spectral_jax.reporting.run_page import PALETTE, flatten, get_template
from spectral_jax.reporting.study_charts import Pen

Values = Mapping[str, Any]
Pens = Mapping[str, Pen]

MOST_CONFUSIONS = 6
NOTHING = "\N{EN DASH}"  # in a cell
CONTROLS = ("concordance", "matthews", "pearson", "focal_frequency")
STAGES = {"as_trained": "as trained", "temperature_scaled": "temperature scaled"}
REGIONS = {"dilated_union": "around objects", "all": "all pixels"}
# What a part of a section may hold; "small" charts stand in numbers.
BLOCK = {"heading": "", "arms": [], "figures": [], "small": False, "tables": []}


def write_study_report(study: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `report.html` and `report.md` about a study and returns the path of the page.

    What was not measured is left out. The page makes no network request.

    Args:
      study: the study's folder, with the `results.json` of `spectral_jax.studies.results.collect`.

    Raises:
      ValueError: where there is no `results.json`.
    """
    folder = pathlib.Path(study).resolve()
    file = folder / "results.json"
    if not file.exists():
        raise ValueError(f"{folder} has no results.json: run spectral-jax report on it")
    results = read_json(file, "delete it and run spectral-jax report on the folder again")
    pens = _pens(results["study"]["arms"])
    topics = {
        "robustness": _by_data_set(results, pens, _robustness),
        "calibration": _by_data_set(results, pens, _calibration),
        "attention": _by_data_set(results, pens, _explanation),
        "interactions": _by_data_set(results, pens, _interactions),
        "errors": _by_data_set(results, pens, _errors),
        "training": _learning(results, pens),
    }
    page = get_template("study_page.html").render(
        study=results["study"],
        results=results,
        pens={arm: pen._replace(color=_page_color(pen.color)) for arm, pen in pens.items()},
        registration=registration_sentences(results),
        primary=primary_table(results),
        forest=_forest(results, pens),
        scores=[(_place(data_set), score_table(data_set)) for data_set in results["data_sets"]],
        comparisons=[
            (_place(data_set), comparison_table(data_set)) for data_set in results["data_sets"]
        ],
        failures=failures(results),
        topics={name: list(blocks) for name, blocks in topics.items()},
        revisions=sorted({run["revision"] for run in results["runs"]}),
        versions=list(flatten(results["versions"])),
    )
    path = folder / "report.html"
    write_text(path, page)
    write_text(folder / "report.md", _markdown(results))
    return path


def _pens(arms: Values) -> dict[str, Pen]:
    """The baseline in ink, controls dashed."""
    colors = itertools.cycle(PALETTE)
    return {
        arm: Pen(INK)
        if changes.get("objective.spectral") == "none"
        else Pen(next(colors), "--" if changes.get("objective.spectral") in CONTROLS else "-")
        for arm, changes in arms.items()
    }


def _page_color(color: str) -> str:
    return "currentColor" if color == INK else color


def _scale(unit: str) -> tuple[float, int]:
    """By what to multiply, and digits to show."""
    return (100, 2) if unit == "points" else (1, 3)


def _score(summary: Values | None, unit: str) -> str:
    if summary is None or summary["mean"] is None:
        return NOTHING
    scale, digits = _scale(unit)
    text = f"{scale * summary['mean']:.{digits}f}"
    if summary["sd"] is not None:
        text += f" \N{PLUS-MINUS SIGN} {scale * summary['sd']:.{digits}f}"
    return text + (f" ({summary['undefined']} undefined)" if summary["undefined"] else "")


def difference(found: Values | None, unit: str = "points") -> str:
    """A mean difference with its interval, such as "+0.45 [+0.10, +0.79]"."""
    if found is None or found["mean"] is None:
        return NOTHING
    scale, digits = _scale(unit)
    mean = f"{scale * found['mean']:+.{digits}f}"
    if found["low"] is None:
        return mean
    ends = (f"{scale * found[end]:+.{digits}f}" for end in ("low", "high"))
    return f"{mean} [{', '.join(ends)}]"


def _p_value(p: float | None) -> str:
    return NOTHING if p is None else "< 0.0001" if p < 1e-4 else f"{p:.4f}"


def _counts(found: Values) -> str:
    left_out = f", {found['units_left_out']} left out" if found["units_left_out"] else ""
    seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    return f"{seeds}, {found['units']} units{left_out}"


def _place(data_set: Values) -> str:
    kind = "in distribution" if data_set["in_distribution"] else "out of distribution"
    split = "all cases" if data_set["split"] == "all" else f"{data_set['split']} split"
    return (
        f"{data_set['dataset']}, {split} ({kind}; {data_set['units']} units, "
        f"{data_set['cases']} cases)"
    )


def registration_sentences(results: Values) -> list[str]:
    """Whether the study was registered before it was run, and what departs from that."""
    found = results["registration"]
    if found["status"] == "not registered":
        return [f"Not registered: {'; '.join(found['why'])}.", *found["departures"]]
    first = f"Registered, committed {found['committed']}, before the first run"
    if found["status"] == "as registered":
        return [f"{first}; run as registered."]
    return [f"{first}. What departs from the registration:", *found["departures"]]


def verdict_words(entry: Values, registered: bool) -> str:
    """The verdict on a primary comparison."""
    words = entry["verdict"]
    if "equivalent" in entry and words != "not finished":
        inside = "within" if entry["equivalent"] else "not shown to be within"
        words += f"; {inside} {100 * entry['equivalence']:g} points of 0"
    return words if registered or words == "not finished" else f"{words} (not registered)"


def primary_table(results: Values) -> dict[str, Any]:
    """The primary comparisons with their verdicts."""
    registered = results["registration"]["status"] != "not registered"
    rows = [
        [
            entry["name"],
            verdict_words(entry, registered),
            difference(entry),
            f"{100 * (1 - entry['level']):.1f} %",
            _p_value(entry["p_value"]),
            f"{entry['outcome']}, {entry['data_set']}",
            _counts(entry),
        ]
        for entry in results["primary"]
    ]
    head = ("Comparison", "Verdict", "Difference, points", "Interval", "p", "Outcome", "Compared")
    return {"head": head, "rows": rows}


def score_table(data_set: Values) -> dict[str, Any]:
    """Every arm's scores on one data set."""
    outcomes = [of for of in data_set["outcomes"].values() if of["arms"]]
    arms = dict.fromkeys(arm for of in outcomes for arm in of["arms"])
    head = ["Arm", *(_title(of) for of in outcomes)]
    rows = [[arm, *(_score(of["arms"].get(arm), of["unit"]) for of in outcomes)] for arm in arms]
    return {"head": head, "rows": rows}


def comparison_table(data_set: Values) -> dict[str, Any]:
    """Every comparison on one data set, outcome by outcome, controls included."""
    outcomes = [of for of in data_set["outcomes"].values() if of["comparisons"]]
    names = dict.fromkeys(name for of in outcomes for name in of["comparisons"])
    rows = [
        [
            _title(of),
            *(difference(of["comparisons"].get(name), of["unit"]) for name in names),
            ", or ".join(dict.fromkeys(_counts(found) for found in of["comparisons"].values())),
        ]
        for of in outcomes
    ]
    return {"head": ["Outcome", *names, "Compared"], "rows": rows}


def _title(outcome: Values) -> str:
    unit = "%" if outcome["unit"] == "points" else outcome["unit"]
    better = "" if outcome["higher_is_better"] else ", lower is better"
    return f"{outcome['title']} ({unit}{better})"


def failures(results: Values) -> dict[str, Any]:
    """How many runs of each arm failed, and which."""
    runs: dict[str, int] = {}
    for of in results["runs"]:
        runs[of["arm"]] = runs.get(of["arm"], 0) + 1
    failed: dict[str, dict[int, list[str]]] = {arm: {} for arm in runs}
    for of in results["failed"]:
        text = f"{of['class']} {100 * of['dice']:.1f} %"
        failed[of["arm"]].setdefault(of["seed"], []).append(text)
    rows = [
        [
            arm,
            f"{len(failed[arm])} of {count}",
            "; ".join(f"seed {seed}: {', '.join(of)}" for seed, of in failed[arm].items())
            or NOTHING,
        ]
        for arm, count in runs.items()
    ]
    return {"head": ["Arm", "Failed runs", "Dice of the class"], "rows": rows}


def _forest(results: Values, pens: Pens) -> Any:
    rows = [
        {"label": entry["name"], "pen": pens[next(iter(entry["contrast"]))]}
        | {key: 100 * entry[key] for key in ("mean", "low", "high")}
        for entry in results["primary"]
        if entry["low"] is not None
    ]
    if not rows:
        return None
    margins = {entry["margin"] for entry in results["primary"] if entry["margin"]}
    return study_charts.forest(
        rows,
        mark=100 * margins.pop() if len(margins) == 1 else None,
        xlabel="difference in points",
        alt="Primary comparisons with their intervals",
    )


def _figure(caption: str, svg: Any) -> dict[str, Any]:
    return {"caption": caption, "svg": svg}


def _by_data_set(results: Values, pens: Pens, make: Any) -> Iterator[dict[str, Any]]:
    """What `make` draws for each data set."""
    for data_set in results["data_sets"]:
        block = make(data_set, pens)
        if block and (block.get("figures") or block.get("tables")):
            yield BLOCK | {"heading": _place(data_set), "arms": list(pens)} | block


def _alt(text: str, data_set: Values, pens: Pens) -> str:
    """What a chart shows, told apart from its like for other data sets and arms."""
    return f"{text}; {data_set['key']}; {', '.join(pens)}"


def _kept(by_arm: Values, pens: Pens) -> dict[str, Any]:
    return {arm: by_arm[arm] for arm in pens if arm in by_arm}


def _robustness(data_set: Values, pens: Pens) -> dict[str, Any]:
    figures = []
    for name, by_arm in data_set.get("robustness", {}).get("corruptions", {}).items():
        curves = _kept(by_arm, pens)
        if curves:
            title = name.replace("_", " ")
            chart = study_charts.lines(
                range(len(next(iter(curves.values()))["mean"])),
                curves,
                pens,
                xlabel="severity; 0 is clean",
                alt=_alt(f"Dice of each arm over the severity of {title}", data_set, pens),
                size=study_charts.SMALL,
            )
            figures.append(_figure(title, chart))
    return {"figures": figures, "small": True}


def _calibration(data_set: Values, pens: Pens) -> dict[str, Any]:
    measured = data_set.get("calibration", {})
    figures, head, columns = [], ["Arm"], []
    for region, title in REGIONS.items():
        for stage, when in STAGES.items():
            by_arm = _kept(measured.get("regions", {}).get(region, {}).get(stage, {}), pens)
            if by_arm:
                diagrams = {arm: entry["reliability"] for arm, entry in by_arm.items()}
                alt = _alt(f"Accuracy over confidence, {title}, {when}", data_set, pens)
                chart = study_charts.reliability(diagrams, pens, alt=alt)
                figures.append(_figure(f"{title}, {when}", chart))
                head.append(f"ECE {title}, {when} (%)")
                columns.append({arm: _percent(entry["ece"]) for arm, entry in by_arm.items()})
    if not figures:
        return {}
    head.append("Temperature")
    columns.append({arm: _plus_minus(of) for arm, of in measured["temperature"].items()})
    rows = [[arm, *(column.get(arm, NOTHING) for column in columns)] for arm in pens]
    return {"figures": figures, "tables": [{"head": head, "rows": rows}]}


def _percent(value: Values) -> str:
    return _plus_minus({k: None if v is None else 100 * v for k, v in value.items()})


def _plus_minus(value: Values) -> str:
    if value["mean"] is None:
        return "undefined"
    return f"{value['mean']:.2f}" + ("" if value["sd"] is None else f" ± {value['sd']:.2f}")


def _explanation(data_set: Values, pens: Pens) -> dict[str, Any]:
    """Scores of the maps."""
    measured = data_set.get("explanation", {})
    arms = _kept(measured.get("arms", {}), pens)
    if not arms:
        return {}
    scores = list(next(iter(arms.values()))["summary"])
    rows = [
        [arm, *(_percent(of["summary"][score]) for score in scores), f"{100 * of['chance']:.2f}"]
        for arm, of in arms.items()
    ]
    made = f"{measured['method']} of {measured['feature']}".replace("_", " ")
    head = [made, *(f"{score.replace('_', ' ')} (%)" for score in scores), "energy by chance (%)"]
    tables = [{"head": head, "rows": rows}]
    if measured["layers"]:
        tables.append(
            {
                "head": ["Rank correlation after randomising", *measured["layers"]],
                "rows": [
                    [arm, *(_correlation(value) for value in of["rank_correlation"])]
                    for arm, of in arms.items()
                ],
            }
        )
    return {"tables": tables}


def _correlation(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.2f}"


def _interactions(data_set: Values, pens: Pens) -> dict[str, Any]:
    measured = data_set.get("interactions", {})
    curves = _kept(measured.get("arms", {}), pens)
    if not curves:
        return {}
    by_arm = {
        arm: {"mean": of["strength"], "sd": of["standard_error"]} for arm, of in curves.items()
    }
    chart = study_charts.lines(
        measured["ratios"],
        by_arm,
        pens,
        xlabel="order over its highest",
        alt=_alt("Strength of interactions of each order", data_set, pens),
    )
    rows = [[arm, f"{of['half_difference']:.3f}", str(of["seeds"])] for arm, of in curves.items()]
    head = ["Arm", "Mean difference of two halves of the contexts", "Seeds"]
    return {
        "figures": [_figure("strength by order", chart)],
        "tables": [{"head": head, "rows": rows}],
    }


def _errors(data_set: Values, pens: Pens) -> dict[str, Any]:
    measured = data_set.get("analysis", {})
    arms = _kept(measured.get("arms", {}), pens)
    if not arms:
        return {}
    figures = []
    edges = measured["size_edges"]
    if len(edges) > 1:
        labels = [f"{high:.0f}" for high in edges[1:]]
        for key, title in (("missed_by_size", "objects missed"), ("recall_by_size", "recall")):
            chart = study_charts.lines(
                range(len(labels)),
                {arm: of[key] for arm, of in arms.items()},
                pens,
                labels=labels,
                percent=True,
                xlabel="size of the object, up to so many voxels",
                alt=_alt(f"Share of {title} over the size of objects", data_set, pens),
            )
            figures.append(_figure(f"{title}, by size", chart))
    labels = [_bin(row) for row in measured["distance_bins"]]
    for name, by_arm in measured["missed_by_distance"].items():
        chart = study_charts.lines(
            range(len(labels)),
            _kept(by_arm, pens),
            pens,
            labels=labels,
            percent=True,
            xlabel="distance inside the boundary, px",
            alt=_alt(f"Share of {name} missed over the distance to its boundary", data_set, pens),
        )
        figures.append(_figure(f"voxels of {name} missed, by depth", chart))
    return {"figures": figures, "tables": [*_confusions(data_set, arms), *_hardness(arms)]}


def _bin(row: Values) -> str:
    return f">{row['low_px']}" if row["high_px"] is None else f"{row['low_px']}-{row['high_px']}"


def _confusions(data_set: Values, arms: Values) -> list[dict[str, Any]]:
    """The largest shares of a class taken for another one."""
    classes = data_set["classes"]
    tables = {arm: np.array(of["confusion"], float) for arm, of in arms.items()}
    worst = np.nanmax(np.stack([np.nan_to_num(table) for table in tables.values()]), axis=0)
    pairs = sorted(
        ((t, p) for t, p in itertools.permutations(range(len(classes)), 2) if t),
        key=lambda pair: -worst[pair],
    )
    pairs = pairs[:MOST_CONFUSIONS]
    head = ["Taken for another class (%)"] + [f"{classes[t]} → {classes[p]}" for t, p in pairs]
    rows = [[arm, *(f"{100 * table[pair]:.2f}" for pair in pairs)] for arm, table in tables.items()]
    return [{"head": head, "rows": rows}]


def _hardness(arms: Values) -> Iterator[dict[str, Any]]:
    """Which cases of a class are hard: rank correlations with its Dice."""
    for name, properties in next(iter(arms.values()))["intra_class"].items():
        head = [f"Correlation of Dice of {name}"] + [
            f"with {k.replace('_', ' ')}" for k in properties
        ]
        rows = [
            [arm, *(_correlation(of["intra_class"][name][key]["mean"]) for key in properties)]
            for arm, of in arms.items()
        ]
        yield {"head": head, "rows": rows}
    far = {arm: of["distance_from_training"] for arm, of in arms.items()}
    if all(far.values()):
        head = ["", "Correlation of error with distance from the training images"]
        yield {"head": head, "rows": [[arm, _correlation(of["mean"])] for arm, of in far.items()]}


def _learning(results: Values, pens: Pens) -> Iterator[dict[str, Any]]:
    by_arm: dict[str, list[tuple[list[float], list[float]]]] = {}
    for of in results["runs"]:
        if of["validation"]:
            steps, dice = zip(*of["validation"], strict=True)
            by_arm.setdefault(of["arm"], []).append((list(steps), list(dice)))
    if by_arm:
        chart = study_charts.learning(by_arm, pens, alt="Validation Dice of every arm")
        yield BLOCK | {
            "heading": "validation, from the first to the last epoch",
            "figures": [_figure("validation Dice", chart)],
            "arms": list(by_arm),
        }


def _markdown(results: Values) -> str:
    """What was registered, the primary comparisons, and every score and comparison."""
    study = results["study"]
    lines = [f"**{_escape(study['title'])}**", ""]
    lines += [_escape(sentence) for sentence in registration_sentences(results)]
    if results["missing"]:
        count = len(results["missing"])
        lines += ["", f"Not finished: {count} of {count + len(results['runs'])} runs are missing."]
    if results["primary"]:
        lines += ["", *markdown_table(primary_table(results))]
    lines += ["", *markdown_table(failures(results))]
    for data_set in results["data_sets"]:
        lines += ["", f"**{_escape(_place(data_set))}**", ""]
        lines += [*markdown_table(score_table(data_set)), ""]
        lines += markdown_table(comparison_table(data_set))
    lines += [
        "",
        "Scores: mean over units (patients or videos), then mean \N{PLUS-MINUS SIGN} standard "
        "deviation over seeds. Differences: paired by seed and unit, with intervals of a mixed "
        "model over both. Those of the first table are simultaneous (Holm); all others are 95 % "
        "intervals, not corrected for their number, and no verdict follows from them.",
    ]
    return "\n".join(lines) + "\n"


def markdown_table(table: Values) -> list[str]:
    """Its lines."""
    rows = [table["head"], ["---"] * len(table["head"]), *table["rows"]]
    return [
        "| " + " | ".join(cell if cell == "---" else _escape(cell) for cell in row) + " |"
        for row in rows
    ]


def _escape(text: str) -> str:
    """A text that neither ends a cell of a table nor becomes mark-up."""
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
