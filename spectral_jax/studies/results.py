"""The runs of a study put together: what each arm scored, what differs, and what that says.

A study's folder has `study.json`, a record of each finished run (`records`), and what `collect`
makes of them: `scores.csv.gz` and `results.json`.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spectral_jax.files import read_json, write_json
from spectral_jax.studies import aggregate
from spectral_jax.studies.outcomes import OUTCOMES, ByUnit, Outcome, mean_defined
from spectral_jax.studies.records import read_records
from spectral_jax.studies.registration import Registration, analysis_facts
from spectral_jax.studies.scores import rows_of, write_scores
from spectral_jax.studies.statistics import Estimate, holm_levels, mixed_estimate, verdict

STUDY_FILE, RESULTS_FILE = "study.json", "results.json"
ALPHA = 0.05
FAILED_BELOW = 0.1
BASELINE = "none"
REGISTERED, UNREGISTERED = "as registered", "not registered"

Values = Mapping[str, Any]
Scores = dict[str, dict[int, ByUnit]]  # by arm and seed
Contrast = Mapping[str, float]  # weight of each arm


def collect(
    study: str | os.PathLike[str], registration: Registration | None = None
) -> dict[str, Any]:
    """Compares the arms of a study and writes `results.json` and `scores.csv.gz` in its folder.

    A study that is not finished gives what there is: arms are compared on the seeds that all of
    them have, and there are no verdicts.

    Args:
      study: the study's folder.
      registration: of the study, if there is one.

    Returns:
      What is written: "study", what `study.json` has; "registration", whether it counts and what
      departs from it; "primary", its comparisons with their verdicts; "data_sets", each with its
      "outcomes": scores of the arms, and every other comparison; "failed" runs; "missing" ones.

    Raises:
      ValueError: for a folder without `study.json` or without records, or a damaged file.
    """
    folder = pathlib.Path(study)
    if not (folder / STUDY_FILE).exists():
        raise ValueError(f"{folder} is not a study's folder: it has no {STUDY_FILE}")
    description = read_json(folder / STUDY_FILE, "run the study again; it skips what is done")
    records = list(read_records(folder))
    if not records:
        raise ValueError(f"{folder} has no record of a run yet; run the study first")
    missing = list(_missing(description, records))
    contrasts = list(_contrasts(description, registration))
    trained_on = f"{description['dataset']}-{description['split']}"
    keys = {key for record in records for key in record["data_sets"]}
    data_sets = [
        _describe(key, records, contrasts, in_distribution=key == trained_on)
        for key in sorted(keys, key=lambda key: (key != trained_on, key))
    ]
    results = {
        "study": description,
        "registration": _check_registration(registration, records, missing),
        "primary": _primary(registration, records, finished=not missing),
        "data_sets": data_sets,
        "failed": list(_failed(records)),
        "missing": missing,
        "runs": [
            {key: record[key] for key in ("arm", "seed", "started", "finished", "validation")}
            | {"revision": record["versions"]["revision"]}
            for record in records
        ],
        "versions": records[-1]["versions"],
    }
    write_json(folder / RESULTS_FILE, results)
    write_scores(folder, records)
    return results


def _missing(description: Values, records: Sequence[Values]) -> Iterator[str]:
    there = {(record["arm"], record["seed"]) for record in records}
    for seed in description["seeds"]:
        for arm in description["arms"]:
            if (arm, seed) not in there:
                yield f"{arm}, seed {seed}"


def _contrasts(
    description: Values, registration: Registration | None
) -> Iterator[tuple[str, Contrast]]:
    """The comparisons that are made of every outcome: those registered, or each arm's."""
    arms = list(description["arms"])
    if registration is not None and "secondary_contrasts" in registration.values:
        values = registration.values
        for of in (*values["primary"], *values["secondary_contrasts"]):
            yield of["name"], of["contrast"]
        return
    for arm in arms:
        if arm != BASELINE and BASELINE in arms:
            yield f"{arm} - {BASELINE}", {arm: 1, BASELINE: -1}
    if {"midband", "twin"} <= {*arms}:
        yield "midband - twin", {"midband": 1, "twin": -1}


def scores_of(records: Sequence[Values], data_set: str, outcome: Outcome) -> Scores:
    """An outcome of every run that has the data set."""
    scores: Scores = {}
    for record in records:
        if data_set in record["data_sets"]:
            found = outcome.of_run(rows_of(record["data_sets"][data_set]))
            if found:
                scores.setdefault(record["arm"], {})[record["seed"]] = found
    return scores


def differences(scores: Scores, contrast: Contrast) -> Float[np.ndarray, "seeds units"]:
    """The weighted sum of arms, of each seed and unit; NaN where one of them has no score.

    Seeds are those that all of the arms have.
    """
    if not all(scores.get(arm) for arm in contrast):
        return np.empty((0, 0))
    seeds = sorted(set.intersection(*({*scores[arm]} for arm in contrast)))
    units = sorted({unit for arm in contrast for seed in seeds for unit in scores[arm][seed]})
    total = np.zeros((len(seeds), len(units)))
    for arm, weight in contrast.items():
        total += weight * np.array(
            [[scores[arm][seed].get(unit, np.nan) for unit in units] for seed in seeds]
        ).reshape(total.shape)
    return total


def without_covariate(
    table: Float[np.ndarray, "seeds units"], covariate: Float[np.ndarray, "seeds units"]
) -> Float[np.ndarray, "seeds units"]:
    """Differences less what the least-squares line through them says of the covariate's.

    What is left at no difference of the covariate; the line's own error is not counted.
    """
    both = np.isfinite(table) & np.isfinite(covariate)
    y, x = table[both], covariate[both]
    spread = ((x - x.mean()) ** 2).sum() if x.size else 0.0
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread else 0.0
    return table - slope * covariate


def _estimate(
    records: Sequence[Values], data_set: str, outcome: Outcome, contrast: Contrast, scores: Scores
) -> Estimate:
    table = differences(scores, contrast)
    if outcome.covariate:
        other = scores_of(records, data_set, OUTCOMES[outcome.covariate])
        table = without_covariate(table, differences(other, contrast))
    return mixed_estimate(table)


def _as_dict(found: Estimate) -> dict[str, Any]:
    low, high = found.interval(ALPHA)
    return {
        "mean": found.mean,
        "low": low,
        "high": high,
        "p_value": found.p_value(),
        "error": found.error,
        "freedom": found.freedom,
        "seeds": found.seeds,
        "units": found.units,
        "units_left_out": found.units_left_out,
    }


def _describe(
    key: str,
    records: Sequence[Values],
    contrasts: Sequence[tuple[str, Contrast]],
    *,
    in_distribution: bool,
) -> dict[str, Any]:
    having = [record for record in records if key in record["data_sets"]]
    first = having[0]["data_sets"][key]
    rows = rows_of(first)
    outcomes = {}
    for name, outcome in OUTCOMES.items():
        scores = scores_of(having, key, outcome)
        if not scores:
            continue
        outcomes[name] = {
            "title": outcome.title,
            "unit": first["distance_unit"] if outcome.unit == "distance" else outcome.unit,
            "higher_is_better": outcome.higher_is_better,
            "arms": {} if outcome.covariate else {a: _summary(of) for a, of in scores.items()},
            "comparisons": {
                title: _as_dict(_estimate(having, key, outcome, contrast, scores))
                for title, contrast in contrasts
                if all(arm in scores for arm in contrast)
            },
        }
    details: dict[str, Any] = {}
    for record in having:
        for kind, of in record["data_sets"][key]["details"].items():
            details.setdefault(kind, {}).setdefault(record["arm"], {})[record["seed"]] = of
    return {
        "key": key,
        "in_distribution": in_distribution,
        **{name: first[name] for name in ("dataset", "split", "classes", "colors")},
        "units": len({row["group"] for row in rows}),
        "cases": len({row["case"] for row in rows}),
        "outcomes": outcomes,
        **aggregate.aggregate(details),
    }


def _summary(by_seed: Mapping[int, ByUnit]) -> dict[str, Any]:
    """Mean over units, then mean and standard deviation over seeds."""
    means = {seed: mean_defined(of.values()) for seed, of in by_seed.items()}
    defined = [mean for mean in means.values() if mean == mean]
    return {
        "mean": mean_defined(defined),
        "sd": float(np.std(defined, ddof=1)) if len(defined) > 1 else np.nan,
        "by_seed": means,
        "undefined": sum(value != value for of in by_seed.values() for value in of.values()),
    }


def _failed(records: Sequence[Values]) -> Iterator[dict[str, Any]]:
    """Runs in which a class has a mean Dice below `FAILED_BELOW`, in distribution."""
    for record in records:
        data_set = next(iter(record["data_sets"].values()))
        by_class: dict[str, list[float]] = {}
        for row in rows_of(data_set):
            if row["class"] and row["dice"] is not None:
                by_class.setdefault(row["class"], []).append(row["dice"])
        for name, values in by_class.items():
            if mean_defined(values) < FAILED_BELOW:
                yield {
                    "arm": record["arm"],
                    "seed": record["seed"],
                    "class": name,
                    "dice": mean_defined(values),
                }


def _primary(
    registration: Registration | None, records: Sequence[Values], *, finished: bool
) -> list[dict[str, Any]]:
    """The registered comparisons, each at the level that Holm's procedure gives it."""
    if registration is None:
        return []
    found = []
    for asked in registration.values["primary"]:
        outcome = OUTCOMES[asked["outcome"]]
        scores = scores_of(records, asked["data_set"], outcome)
        estimate = _estimate(records, asked["data_set"], outcome, asked["contrast"], scores)
        found.append((asked, estimate))
    p_values = np.array([estimate.p_value() for _, estimate in found])
    levels = holm_levels(p_values, ALPHA)
    entries = []
    for (asked, estimate), level in zip(found, levels, strict=True):
        low, high = estimate.interval(level)
        entry = {**asked, **_as_dict(estimate), "low": low, "high": high, "level": float(level)}
        entry["verdict"] = _verdict(asked, low, high) if finished else "not finished"
        if "equivalence" in asked:
            # two one-sided tests at 5 %
            ends = estimate.interval(2 * ALPHA)
            entry["equivalent"] = bool(max(map(abs, ends)) < asked["equivalence"])
            entry["low_90"], entry["high_90"] = ends
        entries.append(entry)
    return entries


def _verdict(asked: Values, low: float, high: float) -> str:
    if asked["margin"] is not None:
        return verdict(low, high, asked["margin"])
    return "above 0" if low > 0 else "below 0" if high < 0 else "undecided"


def _check_registration(
    registration: Registration | None, records: Sequence[Values], missing: Sequence[str]
) -> dict[str, Any]:
    """Whether the results may be called registered, and what departs from what was."""
    told = ("hypotheses", "unit", "rule", "stopping")
    if registration is None:
        nothing = {"why": ["there is no registration"], "departures": [], **dict.fromkeys(told)}
        return {"status": UNREGISTERED, **nothing}
    why = []
    others = [record for record in records if record["registration"] != registration.sha256]
    if others:
        why.append(
            f"{len(others)} of {len(records)} runs began with another registration, or with none"
        )
    committed = registration.committed()
    began = min(record["started"] for record in records)
    if committed is None:
        why.append("no commit holds this registration, so that nothing shows how old it is")
    elif committed > began:
        why.append(f"it was committed at {committed}, after the first run began at {began}")
    departures = [
        f"{record['arm']}, seed {record['seed']}: {sentence}"
        for record in records
        for sentence in record["departures"] or ()
    ]
    if registration.values["code"] != analysis_facts():
        departures.append(f"{registration.values['code']['file']} is not the registered one")
    if missing:
        departures.append(f"{len(missing)} registered runs are missing")
    return {
        "status": UNREGISTERED if why else "departs" if departures else REGISTERED,
        "why": why,
        "departures": departures,
        "sha256": registration.sha256,
        "committed": committed,
        **{key: registration.values.get(key) for key in told},
    }
