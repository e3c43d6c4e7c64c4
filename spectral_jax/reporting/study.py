"""The page of a study: `report.html`, self-contained, and a table for a README, `report.md`."""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from spectral_jax.files import read_json, write_text
from spectral_jax.reporting import overlays, study_charts
from spectral_jax.reporting.charts import INK
from spectral_jax.reporting.report import (
    PALETTE,
    flatten,
    get_template,
    is_finite,
    read_if_there,
    read_metrics,
)
from spectral_jax.reporting.study_charts import Pen

Values = Mapping[str, Any]
Pens = Mapping[str, Pen]

MOST_CONFUSIONS = 6
NOTHING = "\N{EN DASH}"  # in a cell
STAGES = {"as_trained": "as trained", "temperature_scaled": "temperature scaled"}
REGIONS = {"dilated_union": "around objects", "all": "all pixels"}
# What a part of a section may hold; "small" charts stand in numbers.
BLOCK = {"heading": "", "arms": [], "figures": [], "small": False, "tables": [], "pictures": []}
# Columns of the table of scores: outcome and title.
COLUMNS = (
    ("dice", "Dice"),
    ("recall", "Recall"),
    ("hd95", "HD95"),
    ("corrupted_dice", "Dice, corrupted"),
    ("ece_union", "ECE around objects"),
)
FOLDERS = ("data.root", "data.data_dir")  # of the machine that it ran on: nobody else's matter


def write_study_report(study: str | os.PathLike[str]) -> pathlib.Path:
    """Writes `report.html` and `report.md` about a study and returns the path of the page.

    What was not measured is left out and named. The page makes no network request.

    Args:
      study: the study's folder, with the `results.json` of `evaluation.study.collect`. Learning
        curves, settings and maps of single cases come from its `runs/`, where they still are.

    Raises:
      ValueError: where there is no `results.json`.
    """
    folder = pathlib.Path(study).resolve()
    results = read_if_there(folder / "results.json", "delete it and run the study again")
    if not results:
        raise ValueError(f"{folder} has no results.json: spectral_jax.evaluation.study.collect")
    described = results["study"]
    pens = _pens(results["groups"])
    first_run = next(iter(sorted((folder / "runs").glob("*/seed*/config.json"))), None)
    settings = flatten(read_json(first_run, "restore it from a copy")) if first_run else ()
    config = [(key, value) for key, value in settings if key not in FOLDERS]
    topics = {
        "differences": _by_group(results, pens, _differences, results["claims"]),
        "robustness": _by_group(results, pens, _robustness),
        "calibration": _by_group(results, pens, _calibration),
        "attention": _by_group(
            results, pens, _explanation, folder if described["show_images"] else None
        ),
        "interactions": _by_group(results, pens, _interactions),
        "errors": _by_group(results, pens, _errors),
        "training": _learning(folder, results["groups"], pens),
    }
    page = get_template("study.html").render(
        study=described,
        results=results,
        pens={arm: pen._replace(color=_page_color(pen.color)) for arm, pen in pens.items()},
        score_table=_score_table(results),
        verdict_rows=[_verdict_row(results, arm) for arm in pens],
        topics={name: list(blocks) for name, blocks in topics.items()},
        losses={arm: _loss(described["arms"][arm]) for arm in pens},
        config=config,
        designs=list(_designs(results)),
    )
    path = folder / "report.html"
    write_text(path, page)
    write_text(folder / "report.md", _markdown(results))
    return path


def _pens(groups: Sequence[Values]) -> dict[str, Pen]:
    """An arm's colour is that of the same place in the other groups."""
    return {
        arm: Pen(
            INK if arm == group["baseline"] else PALETTE[(place - 1) % len(PALETTE)],
            "--" if arm in group["controls"] else "-",
        )
        for group in groups
        for place, arm in enumerate(group["arms"])
    }


def _page_color(color: str) -> str:
    return "currentColor" if color == INK else color


def _loss(arm: Values) -> str:
    """What an arm minimises, in words."""
    spectral = arm["spectral"]
    if spectral in (None, "none"):
        return f"{arm['model']}, {arm['spatial']}"
    return f"{arm['model']}, {arm['spatial']} + {arm['weight']:g} · {spectral}"


def _scale(outcome: Values) -> tuple[float, int]:
    """By what to multiply, and digits to show."""
    return (100, 2) if outcome["unit"] == "points" else (1, 3)


def _score(outcome: Values, arm: str) -> str:
    summary = outcome["arms"].get(arm)
    if summary is None or summary["mean"] is None:
        return ""
    scale, digits = _scale(outcome)
    spread = "" if summary["sd"] is None else f" ± {scale * summary['sd']:.{digits}f}"
    return f"{scale * summary['mean']:.{digits}f}{spread}"


def _gain(outcome: Values, arm: str) -> str:
    comparison = outcome["comparisons"].get(arm)
    if comparison is None or comparison["mean"] is None:
        return ""
    scale, digits = _scale(outcome)
    text = f"{scale * comparison['mean']:+.{digits}f}"
    if comparison["low"] is None:
        return text
    ends = f"{scale * comparison['low']:+.{digits}f}, {scale * comparison['high']:+.{digits}f}"
    return f"{text} [{ends}]"


def _place(data_set: Values) -> str:
    kind = "in distribution" if data_set["in_distribution"] else "out of distribution"
    return f"{data_set['dataset']}, {data_set['split']} split ({kind})"


def _score_table(results: Values) -> dict[str, Any]:
    """Scores and gains of every arm, by data set and outcome."""
    columns = [
        (data_set, data_set["outcomes"][key], title)
        for data_set in results["data_sets"]
        for key, title in COLUMNS
        if key in data_set["outcomes"]
    ]
    spans = [
        (_place(data_set), len(list(of)))
        for data_set, of in itertools.groupby(column[0] for column in columns)
    ]
    rows = {
        arm: [(_score(outcome, arm), _gain(outcome, arm)) for _, outcome, _ in columns]
        for group in results["groups"]
        for arm in group["arms"]
    }
    titles = [f"{title} ({'%' if o['unit'] == 'points' else o['unit']})" for _, o, title in columns]
    return {"spans": spans, "titles": titles, "rows": rows}


def _verdict_row(results: Values, arm: str) -> list[Values]:
    """The verdicts on an arm, claim by claim; empty where there is none."""
    return [claim["arms"].get(arm, {}) for claim in results["claims"] if claim["arms"]]


def _designs(results: Values) -> Iterator[str]:
    """What the comparisons of each claim and group could have seen."""
    for claim, group in itertools.product(results["claims"], results["groups"]):
        for data_set in results["data_sets"]:
            if data_set["key"] != claim["data_set"]:
                continue
            comparisons = [
                comparison
                for arm, comparison in data_set["outcomes"][claim["outcome"]]["comparisons"].items()
                if arm in group["arms"] and comparison["seeds"] > 1 and comparison["detectable"]
            ]
            if comparisons:
                seen = [100 * c["detectable"] for c in comparisons]
                left_out = max(c["cases_left_out"] for c in comparisons)
                yield (
                    f"{claim['title']}, {data_set['key']}, over {group['baseline']}: "
                    f"{min(seen):.1f} to {max(seen):.1f} points, with "
                    f"{_range(comparisons, 'seeds')} seeds and {_range(comparisons, 'cases')} cases"
                    + (f"; up to {left_out} more are undefined in a run" if left_out else "")
                )


def _range(comparisons: Sequence[Values], key: str) -> str:
    low, high = (of(c[key] for c in comparisons) for of in (min, max))
    return str(low) if low == high else f"{low} to {high}"


def _figure(caption: str, svg: Any) -> dict[str, Any]:
    return {"caption": caption, "svg": svg}


def _differences(data_set: Values, pens: Pens, claims: Sequence[Values]) -> dict[str, Any]:
    """Gains of the arms, a chart for each outcome, with what a claim about it asks for."""
    asked = {c["outcome"]: c["smallest_interesting"] for c in claims}
    figures = []
    for key, outcome in data_set["outcomes"].items():
        scale, _ = _scale(outcome)
        rows = [
            {"label": arm, "pen": pens[arm]}
            | {k: scale * comparison[k] for k in ("mean", "low", "high")}
            for arm, comparison in _kept(outcome["comparisons"], pens).items()
            if all(comparison[k] is not None for k in ("mean", "low", "high"))
        ]
        if rows:
            chart = study_charts.forest(
                rows,
                mark=scale * asked[key] if key in asked else None,
                xlabel=f"gain in {outcome['unit']}; right is better",
                alt=_alt(f"Gain of each arm in {outcome['title']}", data_set, pens),
            )
            figures.append(_figure(outcome["title"], chart))
    return {"figures": figures, "arms": []}  # every row has its name


def _by_group(
    results: Values, pens: Pens, make: Callable[..., dict[str, Any] | None], *more: Any
) -> Iterator[dict[str, Any]]:
    """What `make` draws for each data set and each group of arms with one baseline."""
    for data_set in results["data_sets"]:
        for group in results["groups"]:
            block = make(data_set, {arm: pens[arm] for arm in group["arms"]}, *more)
            if block and (block.get("figures") or block.get("tables")):
                heading = _place(data_set)
                if len(results["groups"]) > 1:
                    heading += f": {group['baseline']} and what is compared with it"
                yield BLOCK | {"heading": heading, "arms": group["arms"]} | block


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


def _explanation(data_set: Values, pens: Pens, folder: pathlib.Path | None) -> dict[str, Any]:
    """Scores of the maps, and the maps of `folder` if there is one."""
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
    pictures = []
    if folder:
        pictures = [
            {"arm": a, "pictures": _maps(folder, data_set, a, of)} for a, of in arms.items()
        ]
    return {"tables": tables, "pictures": [row for row in pictures if row["pictures"]]}


def _correlation(value: float | None) -> str:
    return "undefined" if value is None else f"{value:+.2f}"


def _maps(folder: pathlib.Path, data_set: Values, arm: str, of: Values) -> list[dict[str, str]]:
    """The example maps of one run of an arm."""
    name = f"{data_set['key']}-examples.npz"
    path = folder / "runs" / arm / f"seed{of['seed']}" / "explanation" / name
    if not path.exists():
        return []
    pictures = []
    with np.load(path) as arrays:
        for example in of["examples"]:
            image, label, heat = (
                arrays[f"{example['key']}_{part}"] for part in ("image", "label", "map")
            )
            mask = label == data_set["classes"].index(example["class"])
            uri = overlays.data_uri(overlays.draw_map(image, heat, mask))
            where = example["case"]
            if example["slice"] is not None:
                where += f", slice {example['slice']}"
            pictures.append(
                {
                    "uri": uri,
                    "alt": f"Map of {arm} for {example['class']} in {where}",
                    "caption": f"{example['key']}: {example['class']}, {where}",
                }
            )
    return pictures


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


def _learning(
    folder: pathlib.Path, groups: Sequence[Values], pens: Pens
) -> Iterator[dict[str, Any]]:
    for group in groups:
        by_arm = {}
        for arm in group["arms"]:
            seeds = []
            for path in sorted((folder / "runs" / arm).glob("seed*/metrics.jsonl")):
                lines = [
                    line
                    for line in read_metrics(path)[0]
                    if line["kind"] == "validation" and is_finite(line, "dice")
                ]
                if lines:
                    seeds.append(([x["step"] for x in lines], [x["dice"] for x in lines]))
            if seeds:
                by_arm[arm] = seeds
        if by_arm:
            chart = study_charts.learning(
                by_arm, pens, alt=f"Validation Dice of {', '.join(by_arm)}"
            )
            yield BLOCK | {
                "heading": f"{group['baseline']} and what is compared with it",
                "figures": [_figure("validation Dice", chart)],
                "arms": group["arms"],
            }


def _markdown(results: Values) -> str:
    """A line for each claim, and a table with a line for each arm."""
    study = results["study"]
    data_sets = results["data_sets"]
    inside = [data_set for data_set in data_sets if data_set["in_distribution"]]
    outside = [data_set for data_set in data_sets if not data_set["in_distribution"]]

    def cells(of: Sequence[Values], key: str, write: Callable[[Values, str], str], arm: str) -> str:
        found = [write(d["outcomes"][key], arm) for d in of if key in d["outcomes"]]
        return "; ".join(text for text in found if text)

    lines = [f"**{_escape(study['title'])}**", ""]
    for claim in results["claims"]:
        lines.append(f"- {claim['title']}: **{claim['status']}**; {_escape(claim['sentence'])}")
    head = (
        "Arm",
        "Dice, %",
        "Δ Dice [95 %]",
        "Δ out of distribution [95 %]",
        "Δ corrupted [95 %]",
        "ECE around objects, %",
        "Verdict",
    )
    lines += ["", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for group in results["groups"]:
        for arm in group["arms"]:
            row = (
                _escape(arm) + (" (control)" if arm in group["controls"] else ""),
                cells(inside, "dice", _score, arm),
                "baseline" if arm == group["baseline"] else cells(inside, "dice", _gain, arm),
                cells(outside, "dice", _gain, arm),
                cells(inside, "corrupted_dice", _gain, arm),
                cells(inside, "ece_union", _score, arm),
                _short_verdict(results, arm),
            )
            lines.append(f"| {' | '.join(cell or NOTHING for cell in row)} |")
    lines += [
        "",
        f"Mean ± standard deviation over seeds; differences in points, paired by seed and case, "
        f"with intervals over both; p corrected by Holm's method over {results['family']['size']} "
        f"tests. Revision {_escape(str(study['revision']))}, {_escape(study['machine'])}, "
        f"{study['wall_seconds'] / 3600:.1f} h.",
    ]
    if results["missing"]:
        count = len(results["missing"])
        lines += ["", f"Not finished: runs without results that others have: {count}."]
    return "\n".join(lines) + "\n"


def _short_verdict(results: Values, arm: str) -> str:
    statuses: dict[str, list[str]] = {}
    for claim in results["claims"]:
        if arm in claim["arms"]:
            name = claim["key"].replace("_", " ")
            statuses.setdefault(claim["arms"][arm]["status"], []).append(name)
    order = ("supported", "undecided", "not supported")
    return "; ".join(f"{s}: {', '.join(statuses[s])}" for s in order if s in statuses)


def _escape(text: str) -> str:
    """A text that neither ends a cell of a table nor becomes mark-up."""
    for mark in "\\|<>*_`[]":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.split())
