"""What the charts of a study show: measurements beyond single scores, taken over the seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Result = Mapping[str, Any]  # of one run on one split, as its file has it
BySeed = Mapping[int, Any]
SIZE_BINS = 5
KEPT = {
    "calibration": ("temperature", "regions"),
    "analysis": (
        "scored",
        "objects",
        "false_negatives",
        "confusion",
        "intra_class",
        "distance_from_training",
    ),
    "explanation": ("feature", "method", "summary", "randomisation", "examples"),
    "interactions": ("grid", "ratios", "strength", "half_a", "half_b", "standard_error"),
}


def reduce(folder: str, result: Result) -> dict[str, Any]:
    """What `aggregate` needs of a file that runs have in `folder`; the rest may be forgotten."""
    if folder == "robustness":
        clean = result["clean"]["dice"]
        return {
            name: [clean] + [level["dice"] for level in levels]
            for name, levels in result["corruptions"].items()
        }
    return {key: result[key] for key in KEPT.get(folder, ())}


def aggregate(details: Mapping[str, Mapping[str, BySeed]]) -> dict[str, Any]:
    """Means over seeds, and their spread, for every arm and every kind of measurement there is.

    Args:
      details: what `reduce` kept, by folder, arm and seed.

    Returns:
      Some of "robustness", "calibration", "analysis", "explanation" and "interactions".
    """
    return {
        folder: summarise(details[folder])
        for folder, summarise in SUMMARIES.items()
        if details.get(folder)
    }


def spread(
    rows: Sequence[Sequence[float | None]],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Mean and standard deviation of each column over its defined values; NaN where none is.

    >>> spread([[1.0, None], [3.0, None]])
    (array([ 2., nan]), array([1.41421356,        nan]))
    """
    table = np.ma.masked_invalid(np.array(rows, float))
    mean, sd = table.mean(axis=0), table.std(axis=0, ddof=1)
    return np.ma.filled(mean, np.nan), np.ma.filled(sd, np.nan)


def _robustness(arms: Mapping[str, BySeed]) -> dict[str, Any]:
    """For each corruption and arm, Dice at severities 0 (clean) to 5."""
    curves: dict[str, Any] = {}
    for arm, by_seed in arms.items():
        for name in next(iter(by_seed.values())):
            levels = [run[name] for run in by_seed.values() if name in run]
            curves.setdefault(name, {})[arm] = _spread(levels)
    return {"corruptions": curves}


def _calibration(arms: Mapping[str, BySeed]) -> dict[str, Any]:
    """For each region, stage and arm, the pooled ECE and the diagram of all seeds together."""
    regions: dict[str, Any] = {}
    for arm, by_seed in arms.items():
        runs = list(by_seed.values())
        for region, stages in runs[0]["regions"].items():
            for stage in stages:
                of_runs = [run["regions"][region][stage] for run in runs]
                regions.setdefault(region, {}).setdefault(stage, {})[arm] = {
                    "ece": _mean_and_sd(of_runs, "ece"),
                    "reliability": _pool([run["reliability"] for run in of_runs]),
                }
    temperature = {
        arm: _mean_and_sd(list(runs.values()), "temperature") for arm, runs in arms.items()
    }
    return {"regions": regions, "temperature": temperature}


def _mean_and_sd(runs: Sequence[Result], key: str) -> dict[str, float]:
    mean, sd = spread([[run[key]] for run in runs])
    return {"mean": float(mean[0]), "sd": float(sd[0])}


def _pool(diagrams: Sequence[Result]) -> dict[str, list[float]]:
    """Diagrams with the same bins as one: each run weighs by its pixels in the bin."""
    count = np.array([diagram["count"] for diagram in diagrams], float)
    pooled = {"edges": diagrams[0]["edges"], "count": count.sum(axis=0).tolist()}
    for key in ("confidence", "accuracy"):
        values = np.array([diagram[key] for diagram in diagrams], float)
        total = np.where(count > 0, values * count, 0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            pooled[key] = (total / count.sum(axis=0)).tolist()
    return pooled


def _interactions(arms: Mapping[str, BySeed]) -> dict[str, Any]:
    """For each arm, strength by order with its standard error, and how much two halves differ."""
    curves = {}
    for arm, by_seed in arms.items():
        runs = list(by_seed.values())
        mean, sd = spread([run["strength"] for run in runs])
        if len(runs) > 1:  # trainings differ more than contexts drawn for one of them
            error = sd / np.sqrt(len(runs))
        else:
            error, _ = spread([run["standard_error"] for run in runs])
        halves = [np.subtract(run["half_a"], run["half_b"], dtype=float) for run in runs]
        curves[arm] = {
            "strength": mean.tolist(),
            "standard_error": error.tolist(),
            "half_difference": float(np.mean(np.abs(halves))),
            "seeds": len(runs),
        }
    first = _first(arms)
    return {"ratios": first["ratios"], "grid": first["grid"], "arms": curves}


def _explanation(arms: Mapping[str, BySeed]) -> dict[str, Any]:
    """For each arm, means of the summary and of the randomisation check; examples of one seed."""
    first = _first(arms)
    entries = {}
    for arm, by_seed in arms.items():
        runs = list(by_seed.values())
        correlations = [run["randomisation"]["rank_correlation"] for run in runs]
        seed = min(by_seed)
        scores = [key for key in runs[0]["summary"] if key != "chance"]
        entries[arm] = {
            "summary": {
                key: _mean_and_sd([run["summary"][key] for run in runs], "mean") for key in scores
            },
            "chance": _mean_and_sd([run["summary"] for run in runs], "chance")["mean"],
            "rank_correlation": spread(correlations)[0].tolist(),
            "seed": seed,
            "examples": by_seed[seed]["examples"],
        }
    return {
        "feature": first["feature"],
        "method": first["method"],
        "layers": first["randomisation"]["layers"],
        "arms": entries,
    }


def _first(arms: Mapping[str, BySeed]) -> Any:
    return next(iter(next(iter(arms.values())).values()))


def _analysis(arms: Mapping[str, BySeed]) -> dict[str, Any]:
    """For each arm, what is missed by size and by distance to the boundary, and what confused."""
    first = _first(arms)
    classes = first["scored"]
    sizes = [row["size_px"] for row in first["objects"]]  # the truth's, the same in every run
    edges: list[float] = []
    if sizes:
        edges = np.unique(np.quantile(sizes, np.linspace(0, 1, SIZE_BINS + 1))).tolist()
    by_distance: dict[str, dict[str, Any]] = {name: {} for name in classes}
    arms_found = {}
    for arm, by_seed in arms.items():
        runs = list(by_seed.values())
        for name in classes:
            by_distance[name][arm] = _spread(
                [
                    [
                        _ratio(row["missed_voxels"], row["true_voxels"])
                        for row in _by_distance(run, name)
                    ]
                    for run in runs
                ]
            )
        by_size = [_by_size(run["objects"], edges) for run in runs]
        hardness = [run["intra_class"]["by_class"] for run in runs]
        distances = [run["distance_from_training"] for run in runs]
        arms_found[arm] = {
            "missed_by_size": _spread([row["missed"] for row in by_size]),
            "recall_by_size": _spread([row["recall"] for row in by_size]),
            "confusion": np.mean([_shares(run["confusion"]["matrix"]) for run in runs], 0).tolist(),
            "inter_class_share": _mean_and_sd(
                [run["confusion"] for run in runs], "inter_class_share"
            ),
            "intra_class": {
                name: {
                    key: _mean_and_sd([of_run[name][key] for of_run in hardness], "spearman")
                    for key in hardness[0][name]
                }
                for name in classes
            },
            "distance_from_training": _mean_and_sd(distances, "spearman")
            if all(distances)
            else None,
        }
    return {
        "size_edges": edges,
        "distance_bins": [
            {"low_px": row["low_px"], "high_px": row["high_px"]}
            for row in _by_distance(first, classes[0])
        ],
        "missed_by_distance": by_distance,
        "arms": arms_found,
    }


def _by_distance(run: Result, name: str) -> Sequence[Result]:
    return run["false_negatives"][name]["by_boundary_distance"]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else np.nan


def _spread(rows: Sequence[Sequence[float | None]]) -> dict[str, list[float]]:
    mean, sd = spread(rows)
    return {"mean": mean.tolist(), "sd": sd.tolist()}


def _by_size(objects: Sequence[Result], edges: Sequence[float]) -> dict[str, list[float]]:
    """Share of objects missed, and mean recall, between the edges of size."""
    bins = np.digitize([row["size_px"] for row in objects], edges[1:-1], right=True)
    return {
        key: [
            _mean([row[key] for row, at in zip(objects, bins, strict=True) if at == index])
            for index in range(max(0, len(edges) - 1))
        ]
        for key in ("missed", "recall")
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else np.nan


def _shares(confusion: Sequence[Sequence[float]]) -> np.ndarray:
    """Of each true class, the share predicted as each class."""
    counts = np.array(confusion, float)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=1, keepdims=True)


SUMMARIES: dict[str, Callable[[Mapping[str, BySeed]], dict[str, Any]]] = {
    "robustness": _robustness,
    "calibration": _calibration,
    "analysis": _analysis,
    "explanation": _explanation,
    "interactions": _interactions,
}
