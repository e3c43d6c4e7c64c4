"""The scores of a cross-validation: each case once, by the network that has not seen it."""

from collections.abc import Mapping, Sequence
from typing import Any

from spectral_jax.metrics import summarise

SPLIT = "folds"
ALIKE = ("dataset", "classes", "distance_unit", "nsd_tolerance", "threshold")


def join_folds(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts the scores of what each fold held out together, as one evaluation.

    Args:
      results: what `evaluate` wrote of each fold, in their order.

    Returns:
      The same for all of their cases; each row has the number of its fold.

    Raises:
      ValueError: for a case that two folds scored, or folds of other classes or units.
    """
    first = results[0]
    seen: dict[str, int] = {}
    for fold, result in enumerate(results):
        for key in ALIKE:
            if result[key] != first[key]:
                raise ValueError(
                    f"fold {fold} was scored with another {key} ({result[key]!r}) than fold 0 "
                    f"({first[key]!r}): score it again with spectral-jax evaluate"
                )
        for case in {row["case"] for row in result["cases"]}:
            if case in seen:
                raise ValueError(f"folds {seen[case]} and {fold} both scored the case {case!r}")
            seen[case] = fold
    rows = [{**row, "fold": seen[row["case"]]} for result in results for row in result["cases"]]
    summary, by_class = summarise(rows)
    steps = [result["checkpoint"]["step"] for result in results]
    return {
        **first,
        "split": SPLIT,
        "checkpoint": {"name": first["checkpoint"]["name"], "step": steps},
        "cases": rows,
        "summary": summary,
        "by_class": by_class,
        "examples": [],
        "wall_seconds": sum(result["wall_seconds"] for result in results),
    }
