"""What a finished run of a study leaves: one small file, which counts as done wherever it lies.

A record holds the scores of every case, what charts need beside them, the configuration and the
versions, and no weights. A study's folder has them in `records/ARM-seedN.json`; parts made on
several days or machines are merged by copying these files into one folder.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spectral_jax.files import write_text
from spectral_jax.studies import aggregate

FOLDER = "records"
DIGITS = 6
KEYS = ("group", "case", "class")
# of each case and class; of each case, whose rows have no class
BY_CLASS = (
    *("dice", "precision", "recall", "hd95", "true_voxels", "predicted_voxels", "confused_voxels"),
    *("recall_at_true_volume", "corrupted_dice"),
)
BY_CASE = (
    *("ece_all", "ece_union", "ece_truth", "ece_truth_scaled", "accuracy_truth", "brier", "nll"),
)
FACTS = ("dataset", "split", "trained_on", "classes", "colors", "distance_unit")

Row = dict[str, Any]


def record_file(folder: pathlib.Path, arm: str, seed: int) -> pathlib.Path:
    """Where the record of a run lies in a study's folder."""
    return folder / FOLDER / f"{arm}-seed{seed}.json"


def write_record(file: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes a record, whole or not at all, on one line."""
    write_text(file, json.dumps(record, allow_nan=False, separators=(",", ":")) + "\n")


def measured(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What a record has of one data set.

    Args:
      results: what each measurement found, by its folder, such as "evaluation", without which there
        is nothing.

    Returns:
      The `FACTS`; "columns" and "rows", a row for each case and class and one for each case;
      "details", what charts need of each measurement.
    """
    evaluation = results["evaluation"]
    rows: dict[tuple[str, str], Row] = {
        (row["case"], row["class"]): {key: row[key] for key in (*KEYS, *BY_CLASS) if key in row}
        for row in evaluation["cases"]
    }
    groups = {row["case"]: row["group"] for row in evaluation["cases"]}
    if "robustness" in results:
        for key, values in _corrupted_dice(results["robustness"]).items():
            rows[key]["corrupted_dice"] = _mean(values)
    if "calibration" in results:
        for row in results["calibration"]["ranking"]:
            key = row["case"], row["class"]
            rows[key]["recall_at_true_volume"] = row["recall_at_true_volume"]
        for row in results["calibration"]["cases"]:
            case = row["case"]
            of_case = {"group": groups[case], "case": case, "class": ""}
            rows[case, ""] = of_case | {key: row[key] for key in BY_CASE}
    present = [
        key for key in (*KEYS, *BY_CLASS, *BY_CASE) if any(key in row for row in rows.values())
    ]
    return {
        **{key: evaluation[key] for key in FACTS},
        "columns": present,
        "rows": [[rounded(row.get(key)) for key in present] for row in rows.values()],
        "details": rounded({kind: aggregate.reduce(kind, of) for kind, of in results.items()}),
    }


def _corrupted_dice(robustness: Mapping[str, Any]) -> dict[tuple[str, str], list[float | None]]:
    """Dice of each case and class, once for each corruption and severity."""
    values: dict[tuple[str, str], list[float | None]] = {}
    for levels in robustness["corruptions"].values():
        for level in levels:
            for row in level["cases"]:
                values.setdefault((row["case"], row["class"]), []).append(row["dice"])
    return values


def _mean(values: Sequence[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def rounded(value: Any) -> Any:
    """Numbers to the digits that are kept; what is undefined is None."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def read_records(folder: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The records in a study's folder, by arm, then seed.

    Raises:
      ValueError: for a file that is damaged.
    """
    found = []
    for file in (folder / FOLDER).glob("*.json"):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found.append((record["arm"], record["seed"], record))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no record of a run ({type(error).__name__}: {error}): delete it, and "
                "the study makes it again"
            ) from error
    for _, _, record in sorted(found, key=lambda of: of[:2]):
        yield record
