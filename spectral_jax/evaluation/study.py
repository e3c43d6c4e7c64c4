"""The runs of a study put together: what each arm scored, what differs, and what that says.

A study trains arms, which differ in their loss, on the same seeds. Its folder has `study.json` and
runs in `runs/ARM/seedN`, each with `evaluation/`, `robustness/`, `calibration/`, `analysis/`,
`explanation/` and `interactions/`, whichever were measured. `collect` writes `results.json`.
"""

import dataclasses
import os
import pathlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from spectral_jax.evaluation.interactions import middle_share
from spectral_jax.evaluation.statistics import PAPER_GAIN, Comparison, compare, holm, verdict
from spectral_jax.files import read_json, without_nan, write_json
from spectral_jax.studies import aggregate

STUDY_FILE, RESULTS_FILE = "study.json", "results.json"
MEASURE_AGAIN = "delete it and measure again"
# What a gain of a spectral arm has to exceed: its spatial twins, and the other frequency loss.
CONTROLS = ("matthews", "pearson", "focal_frequency")

Scores = dict[str, float]  # by case
Result = Mapping[str, Any]  # of one run on one split, as its file has it


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A score that arms are compared by.

    Attributes:
      title: for people.
      folder: of the runs, whose files tell it.
      by_case: takes it from such a file.
      higher_is_better: its direction.
      unit: "points", hundredths of a share; or what else it is measured in.
    """

    title: str
    folder: str
    by_case: Callable[[Result], Scores]
    higher_is_better: bool = True
    unit: str = "points"


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something said of the spectral term, with the one outcome that decides it.

    Attributes:
      title: for people, to be followed by "supported" or the like.
      outcome: key of `OUTCOMES`.
      in_distribution: on which data sets.
      smallest_interesting: the gain asked about, as a share.
    """

    title: str
    outcome: str
    in_distribution: bool = True
    smallest_interesting: float = 0.01  # where nobody published a size


def _mean(values: Sequence[float | None]) -> float:
    """Mean of the defined values; NaN without any."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else np.nan


def _by_case(rows: Sequence[Result], key: str) -> Scores:
    """Mean of what each case's rows have under `key`, over its classes, slices or objects."""
    values = defaultdict(list)
    for row in rows:
        values[row["case"]].append(row[key])
    return {case: _mean(of) for case, of in values.items()}


def _of_cases(result: Result, key: str) -> Scores:
    return _by_case(result["cases"], key)


def _of_class(result: Result, key: str, name: str) -> Scores:
    return _by_case([row for row in result["cases"] if row["class"] == name], key)


def _distances(result: Result) -> Scores:
    """Mean HD95 over classes; undefined where a class is missed or invented, not only absent."""
    failed = {r["case"] for r in result["cases"] if r["hd95"] is None and r["dice"] is not None}
    return _by_case(result["cases"], "hd95") | dict.fromkeys(failed, np.nan)


def _missed_objects(result: Result) -> Scores:
    return _by_case(result["objects"], "missed")


def _corrupted_dice(result: Result) -> Scores:
    """Mean over classes, severities and corruptions, each of which weighs the same."""
    levels = [
        _of_cases(level, "dice") for levels in result["corruptions"].values() for level in levels
    ]
    return {case: _mean([level[case] for level in levels]) for case in levels[0]}


def _relative_drop(result: Result) -> Scores:
    return {"all cases": result["relative_drop"]}


def _middle_share(result: Result) -> Scores:
    return {
        f"image {number}": middle_share(result["ratios"], np.array(strength, float))
        for number, strength in enumerate(result["by_image"])
    }


OUTCOMES = {
    "dice": Outcome("Dice", "evaluation", partial(_of_cases, key="dice")),
    "recall": Outcome(
        "Recall, 1 minus the rate of false negatives",
        "evaluation",
        partial(_of_cases, key="recall"),
    ),
    "hd95": Outcome("HD95", "evaluation", _distances, higher_is_better=False, unit="distance"),
    "missed_objects": Outcome(
        "Missed objects", "analysis", _missed_objects, higher_is_better=False
    ),
    "corrupted_dice": Outcome("Dice of corrupted images", "robustness", _corrupted_dice),
    "relative_drop": Outcome(
        "Relative drop of Dice", "robustness", _relative_drop, higher_is_better=False
    ),
    "ece_union": Outcome(
        "ECE around objects",
        "calibration",
        partial(_of_cases, key="ece_union"),
        higher_is_better=False,
    ),
    "ece_all": Outcome(
        "ECE of all pixels",
        "calibration",
        partial(_of_cases, key="ece_all"),
        higher_is_better=False,
    ),
    "brier": Outcome(
        "Brier score", "calibration", partial(_of_cases, key="brier"), higher_is_better=False
    ),
    "nll": Outcome(
        "Negative log likelihood",
        "calibration",
        partial(_of_cases, key="nll"),
        higher_is_better=False,
        unit="nats",
    ),
    "cam_energy": Outcome(
        "CAM energy inside the object", "explanation", partial(_of_cases, key="energy_inside")
    ),
    "middle_share": Outcome("Share of middle orders", "interactions", _middle_share),
}

# Fixed before any run: one outcome decides each claim, whatever the others show.
CLAIMS = {
    "in_distribution": Claim(
        "Better segmentation in distribution", "dice", smallest_interesting=PAPER_GAIN
    ),
    "out_of_distribution": Claim(
        "Better segmentation out of distribution",
        "dice",
        in_distribution=False,
        smallest_interesting=PAPER_GAIN,
    ),
    "robustness": Claim(
        "More robust to corrupted images", "corrupted_dice", smallest_interesting=PAPER_GAIN
    ),
    "calibration": Claim("Better calibrated", "ece_union"),
    "false_negatives": Claim("Fewer false negatives", "recall"),
    "interpretability": Claim("Class activation more within the object", "cam_energy"),
    "middle_order": Claim("More interactions of middle order", "middle_share"),
}


@dataclasses.dataclass
class DataSet:
    """What the runs have on one split, by arm and seed.

    Attributes:
      files: of each folder, such as "evaluation", the runs that have one.
      scores: by outcome, arm, seed and case.
      details: what charts need of each file, by folder.
      facts: what is the same for every run, such as the classes.
    """

    files: dict[str, set[tuple[str, int]]]
    scores: dict[str, dict[str, dict[int, Scores]]]
    details: dict[str, dict[str, dict[int, Any]]]
    facts: dict[str, Any]


def collect(study: str | os.PathLike[str], *, samples: int = 10000) -> dict[str, Any]:
    """Compares every arm of a study with its baseline and writes `results.json` in its folder.

    Arms are paired by seed and case (`statistics.compare`). A claim about a spectral arm is
    supported only if the arm gains over its baseline, by a p that Holm's method corrects over
    all arms, claims and data sets of the study, and gains over each control arm as well.

    A study that is not finished gives what there is: files that some runs have and others lack
    are listed under "missing", and arms are compared on the seeds that both have.

    Args:
      study: the study's folder.
      samples: of each bootstrap and permutation test.

    Returns:
      What is written: "study", what `study.json` has; "groups" of arms with one baseline;
      "claims"; "family", of the correction; "data_sets", each with its "outcomes"; "missing".

    Raises:
      ValueError: for a folder without `study.json` or without results, or a damaged file.
    """
    folder = pathlib.Path(study)
    if not (folder / STUDY_FILE).exists():
        raise ValueError(f"{folder} is not a study's folder: it has no {STUDY_FILE}")
    description = read_json(folder / STUDY_FILE, "delete it and run the study again")
    runs = [(arm, seed) for arm in description["arms"] for seed in _seeds(description, arm)]
    data_sets = _read_runs(folder, runs)
    if not data_sets:
        raise ValueError(f"no run of {folder / 'runs'} has been evaluated; run the study first")
    groups = _group(description)
    order = [f"{description['dataset']}-test"]  # in distribution first
    keys = sorted(data_sets, key=lambda key: (key not in order, key))
    results = {
        "study": description,
        "groups": groups,
        "missing": list(_missing(data_sets, runs)),
        "data_sets": [
            {"key": key, "in_distribution": key in order}
            | data_sets[key].facts
            | {"outcomes": _compare_outcomes(data_sets[key], groups, samples)}
            | aggregate.aggregate(data_sets[key].details)
            for key in keys
        ],
    }
    results["claims"], results["family"] = _judge(results["data_sets"], data_sets, groups, samples)
    results = without_nan(results)
    write_json(folder / RESULTS_FILE, results)
    return results


def _seeds(description: Result, arm: str) -> Sequence[int]:
    """Seeds of an arm: the study's, or as many as the arm says."""
    return description["seeds"][: description["arms"][arm].get("seeds")]


def _group(description: Result) -> list[dict[str, Any]]:
    """Arms that share a baseline, which comes first, and the controls among them."""
    groups: dict[str, dict[str, Any]] = {}
    for arm, baseline in description["baselines"].items():
        groups.setdefault(baseline, {"baseline": baseline, "arms": [baseline], "controls": []})
        if arm != baseline:
            groups[baseline]["arms"].append(arm)
            if description["arms"][arm]["spectral"] in CONTROLS:
                groups[baseline]["controls"].append(arm)
    return list(groups.values())


def _read_runs(folder: pathlib.Path, runs: Sequence[tuple[str, int]]) -> dict[str, DataSet]:
    data_sets: dict[str, DataSet] = {}
    kinds = dict.fromkeys(outcome.folder for outcome in OUTCOMES.values())
    for arm, seed in runs:
        for kind in kinds:
            for path in sorted((folder / "runs" / arm / f"seed{seed}" / kind).glob("*.json")):
                data_set = data_sets.setdefault(
                    path.stem, DataSet(defaultdict(set), {}, defaultdict(dict), {})
                )
                try:
                    _take(data_set, kind, arm, seed, read_json(path, MEASURE_AGAIN))
                except (KeyError, TypeError, IndexError) as error:
                    raise ValueError(
                        f"{path} has another form than this version of the package writes "
                        f"({type(error).__name__}: {error}): {MEASURE_AGAIN}"
                    ) from error
    return data_sets


def _take(data_set: DataSet, kind: str, arm: str, seed: int, result: Result) -> None:
    """Adds one file of one run."""
    data_set.files[kind].add((arm, seed))
    data_set.facts |= {
        key: result[key]
        for key in ("dataset", "split", "classes", "colors", "distance_unit")
        if key in result
    }
    scores = {
        key: outcome.by_case(result) for key, outcome in OUTCOMES.items() if outcome.folder == kind
    }
    if kind == "evaluation":
        data_set.facts["case_count"] = len(scores["dice"])
        for name in dict.fromkeys(row["class"] for row in result["cases"]):
            scores[f"dice/{name}"] = _of_class(result, "dice", name)
    for key, by_case in scores.items():
        data_set.scores.setdefault(key, {}).setdefault(arm, {})[seed] = by_case
    data_set.details[kind].setdefault(arm, {})[seed] = aggregate.reduce(kind, result)


def _missing(data_sets: Mapping[str, DataSet], runs: Sequence[tuple[str, int]]) -> Iterator[str]:
    """What some runs have and others lack, run by run."""
    for arm, seed in runs:
        files = {
            f"{kind}/{key}.json": (arm, seed) in having
            for key, data_set in data_sets.items()
            for kind, having in data_set.files.items()
        }
        lacking = [file for file, there in files.items() if not there]
        if lacking:
            what = "everything" if len(lacking) == len(files) else ", ".join(lacking)
            yield f"{arm}, seed {seed}: {what}"


def _outcome(key: str) -> Outcome:
    key, _, name = key.partition("/")
    outcome = OUTCOMES[key]
    return dataclasses.replace(outcome, title=f"{outcome.title}, {name}") if name else outcome


def _compare(
    scores: Mapping[str, Mapping[int, Scores]], arm: str, other: str, key: str, samples: int
) -> Comparison | None:
    """Gains of an arm over another on the seeds that both have; None without any.

    Positive is better, also where the score itself is better when lower.
    """
    seeds = sorted(scores.get(arm, {}).keys() & scores.get(other, {}).keys())
    if not seeds:
        return None
    cases = list(dict.fromkeys(c for a in (arm, other) for s in seeds for c in scores[a][s]))
    tables = [_table(scores[name], seeds, cases) for name in (arm, other)]
    if not _outcome(key).higher_is_better:
        tables.reverse()
    return compare(*tables, rng=np.random.default_rng(0), samples=samples)


def _table(
    by_seed: Mapping[int, Scores], seeds: Sequence[int], cases: Sequence[str]
) -> Float[np.ndarray, "seeds cases"]:
    return np.array([[by_seed[seed].get(case, np.nan) for case in cases] for seed in seeds])


def _compare_outcomes(
    data_set: DataSet, groups: Sequence[Result], samples: int
) -> dict[str, dict[str, Any]]:
    outcomes = {}
    for key in sorted(data_set.scores, key=lambda key: list(OUTCOMES).index(key.split("/")[0])):
        scores, outcome = data_set.scores[key], _outcome(key)
        arms, comparisons = {}, {}
        for group in groups:
            for arm in group["arms"]:
                if arm in scores:
                    arms[arm] = _summary(scores[arm])
                if arm == group["baseline"]:
                    continue
                comparison = _compare(scores, arm, group["baseline"], key, samples)
                if comparison is not None:
                    comparisons[arm] = _as_dict(comparison, group["baseline"])
        unit = data_set.facts.get("distance_unit", "px")
        outcomes[key] = {
            "title": outcome.title,
            "unit": unit if outcome.unit == "distance" else outcome.unit,
            "higher_is_better": outcome.higher_is_better,
            "arms": arms,
            "comparisons": comparisons,
        }
    return outcomes


def _summary(by_seed: Mapping[int, Scores]) -> dict[str, Any]:
    """Mean over cases, then mean and standard deviation over seeds."""
    means = {seed: _mean([v for v in of.values() if v == v]) for seed, of in by_seed.items()}
    defined = [mean for mean in means.values() if mean == mean]
    return {
        "mean": _mean(defined),
        "sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else np.nan,
        "by_seed": means,
        "undefined": sum(v != v for of in by_seed.values() for v in of.values()),
    }


def _as_dict(comparison: Comparison, baseline: str) -> dict[str, Any]:
    values = dataclasses.asdict(comparison)
    return values | {"baseline": baseline, "effect_size": comparison.effect_size._asdict()}


def _judge(
    described: Sequence[dict[str, Any]],
    data_sets: Mapping[str, DataSet],
    groups: Sequence[Result],
    samples: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Verdicts on every claim, for each data set that bears on it and every arm."""
    tests = []
    claims: list[dict[str, Any]] = []
    for name, claim in CLAIMS.items():
        fitting = [
            data_set
            for data_set in described
            if data_set["in_distribution"] == claim.in_distribution
            and data_set["outcomes"].get(claim.outcome, {}).get("comparisons")
        ]
        unfilled = {"key": name, **dataclasses.asdict(claim), "data_set": None}
        if not fitting:
            claims.append(unfilled | {"arms": {}})
        for data_set in fitting:
            claims.append(unfilled | {"arms": {}, "data_set": data_set["key"]})
            comparisons = data_set["outcomes"][claim.outcome]["comparisons"]
            tests += [(claims[-1], arm, comparison) for arm, comparison in comparisons.items()]
    corrected = holm(np.array([comparison["p_value"] for _, _, comparison in tests]))
    for (entry, arm, comparison), p_value in zip(tests, corrected, strict=True):
        group = next(group for group in groups if arm in group["arms"])
        controls = {}
        if arm not in group["controls"]:
            scores = data_sets[entry["data_set"]].scores[entry["outcome"]]
            for control in group["controls"]:
                against = _compare(scores, arm, control, entry["outcome"], samples)
                if against is not None:
                    controls[control] = _as_dict(against, control)
        smallest = entry["smallest_interesting"]
        text = verdict(_from_dict(comparison), p_value, smallest_interesting=smallest)
        if arm not in group["controls"] and text.startswith("supported"):
            status, limit = _against_controls(controls, smallest)
            text = f"{status}:{text.partition(':')[2]} over the baseline, {limit}"
        entry["arms"][arm] = {
            "control": arm in group["controls"],
            "corrected_p": float(p_value),
            "against_controls": controls,
            "status": text.partition(":")[0],
            "verdict": text,
        }
    for entry in claims:
        described_set = next((d for d in described if d["key"] == entry["data_set"]), None)
        entry["status"], entry["sentence"] = _conclude(entry, described_set)
    family = {
        "size": int(np.isfinite(corrected).sum()),
        "text": "every arm but the baselines, controls included, on every claim and every data "
        "set that bears on it",
    }
    return claims, family


def _from_dict(values: Mapping[str, Any]) -> Comparison:
    names = [field.name for field in dataclasses.fields(Comparison)]
    return Comparison(**{name: values[name] for name in names})


def _against_controls(
    controls: Mapping[str, Mapping[str, Any]], smallest_interesting: float
) -> tuple[str, str]:
    """What is left of a gain over the baseline once the control arms are asked, and why."""
    if not controls:
        return "undecided", "but no control arm tells what from"
    for name, against in controls.items():
        if not against["low"] > 0:
            room = against["high"] >= smallest_interesting
            return (
                "undecided" if room else "not supported",
                f"but not more than the control {name} "
                f"({100 * against['mean']:+.2f} beside it, {_interval(against)})",
            )
    return "supported", f"and more than the controls: {', '.join(controls)}"


def _interval(comparison: Mapping[str, Any]) -> str:
    return f"{100 * comparison['low']:+.2f} to {100 * comparison['high']:+.2f}"


def _conclude(entry: Mapping[str, Any], data_set: Mapping[str, Any] | None) -> tuple[str, str]:
    """One status and one sentence about a claim, over its spectral arms."""
    arms = {arm: of for arm, of in entry["arms"].items() if not of["control"]}
    if data_set is None or not arms:
        where = "in" if entry["in_distribution"] else "out of"
        return "not measured", (
            f"this study has no {OUTCOMES[entry['outcome']].title} {where} distribution "
            "of a spectral arm and its baseline"
        )
    comparisons = data_set["outcomes"][entry["outcome"]]["comparisons"]
    by_status = {
        status: [arm for arm, of in arms.items() if of["status"] == status]
        for status in ("supported", "undecided", "not supported")
    }

    status, judged = next((status, of) for status, of in by_status.items() if of)
    if status != "supported":  # one stands for all
        judged = [max(judged, key=lambda arm: np.nan_to_num(comparisons[arm]["mean"], nan=-np.inf))]
    reasons = [f"{arm}, {arms[arm]['verdict'].partition(': ')[2]}" for arm in judged]
    count = len(by_status[status])
    return status, (
        f"{count} of {len(arms)} spectral arms {'is' if count == 1 else 'are'} {status}"
        f"{': ' if status == 'supported' else ', at best '}{'; '.join(reasons)}"
    )
