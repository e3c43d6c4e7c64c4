"""Splits that keep a patient or video together."""

import hashlib
from collections.abc import Mapping, Sequence

from spectral_jax.data.datasets.dataset import Case, Found
from spectral_jax.data.volumes import DataError

SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.2
FIRST_FOLD = 0  # of published folds, which is the default
Splits = dict[str, list[Case]]


def decide(
    found: Found,
    validation: float,
    resplit: bool,
    fold: int | None = None,
    folds: int = 5,
) -> tuple[Splits, list[str]]:
    """The splits to write, those of the literature where they are there.

    Published folds hold out cases of the training part: for validation, or, where there is no test
    case, to test.

    Args:
      found: the cases.
      validation: share of the training groups that is held out where there is no validation split.
      resplit: split all cases again, by group: a fifth to test, then `validation` of the rest.
        This happens of itself if there is no test case at all.
      fold: see `hold_out_fold`; None for no folds.
      folds: how many there are.

    Returns:
      The splits, without empty ones, and notes for the user.

    Raises:
      DataError: if a case appears twice, a group is in two splits, or there is too little.
    """
    if not 0 <= validation < 1:
        raise DataError(f"validation={validation}: expected a share, from 0 up and below 1")
    if fold is not None:
        return hold_out_fold(found, validation, resplit, fold, folds)
    unsplit = found.splits.get("all", ())
    splits = {name: list(found.splits.get(name, ())) for name in SPLITS}
    notes = []
    if found.folds and not resplit:
        splits["train"], held_out = part_fold(splits["train"], found.folds, FIRST_FOLD)
        splits["validation" if splits["test"] else "test"] += held_out
    anew = resplit or not splits["test"]
    if anew:
        pool = [*unsplit, *(case for split in splits.values() for case in split)]
        splits["train"], splits["test"] = hold_out(pool, TEST_SHARE)
        if not splits["test"]:
            raise DataError(
                f"{pool[0].files[0]}: the only patient, video or picture; at least two are needed, "
                "to train on one and test on the other"
            )
        if not unsplit:
            why = "as asked" if resplit else "the files of the published test split are not there"
            notes.append(f"re-split; scores are not comparable with published ones: {why}")
    if anew or ("validation" not in found.splits and not splits["validation"]):
        splits["train"], splits["validation"] = hold_out(splits["train"], validation)
        if splits["validation"]:
            notes.append(
                f"held out of the training part for validation: {len(splits['validation'])}"
            )
    check(splits)
    return {name: cases for name, cases in splits.items() if cases}, notes


def part_fold(
    cases: Sequence[Case], folds: Mapping[str, int], number: int
) -> tuple[list[Case], list[Case]]:
    """Parts the cases that a fold trains on from those that it holds out."""
    held = {name for name, fold in folds.items() if fold == number}
    kept = [case for case in cases if case.name not in held]
    return kept, [case for case in cases if case.name in held]


def hold_out_fold(
    found: Found, validation: float, resplit: bool, fold: int, folds: int
) -> tuple[Splits, list[str]]:
    """The splits of one fold: what it holds out is "fold".

    Folds share all cases but those of a published test split, which stays "test"; with `resplit`
    these too. They are the published ones, where the set has some; otherwise whole groups are dealt
    out in an order drawn from their names. The training part gives `validation` of its groups.

    Raises:
      DataError: for a fold that there is not.
    """
    splits = {name: list(cases) for name, cases in found.splits.items()}
    test = [] if resplit else splits.pop("test", [])
    pool = [case for cases in splits.values() for case in cases]
    if found.folds and not resplit:
        fold_of = dict(found.folds)
        count = 1 + max(fold_of.values())
        what = "as published"
    else:
        groups = sorted({case.group for case in pool}, key=_draw)
        number_of = {group: number % folds for number, group in enumerate(groups)}
        fold_of = {case.name: number_of[case.group] for case in pool}
        count = min(folds, len(groups))
        what = f"of {len(groups)} patients, videos or pictures"
    if count != folds or not 0 <= fold < folds:
        raise DataError(
            f"fold {fold} of {folds}: there are {count} folds {what}, numbered from 0; say "
            f"--config.data.folds={count}"
        )
    rest, held_out = part_fold(pool, fold_of, fold)
    train, tuning = hold_out(rest, validation)
    parts = {"train": train, "validation": tuning, "fold": held_out, "test": test}
    check(parts)
    note = f"fold {fold} of {folds}, {what}: {len(held_out)} held out, {len(tuning)} for validation"
    return {name: cases for name, cases in parts.items() if cases}, [note]


def hold_out(cases: Sequence[Case], share: float) -> tuple[list[Case], list[Case]]:
    """Parts the cases, whole groups to one side, in an order drawn from the groups' names.

    At least one group is held out if there are two, unless `share` is 0.
    """
    groups = sorted({case.group for case in cases}, key=_draw)
    wanted = max(1, round(share * len(groups))) if share else 0
    count = min(wanted, len(groups) - 1)
    held = set(groups[:count])
    kept = [case for case in cases if case.group not in held]
    return kept, [case for case in cases if case.group in held]


def _draw(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def check(splits: Mapping[str, Sequence[Case]]) -> None:
    """Raises DataError if a case appears twice, or a group in two splits."""
    cases: dict[str, Case] = {}
    groups: dict[str, tuple[str, Case]] = {}
    for split, members in splits.items():
        for case in members:
            if case.name in cases:
                raise DataError(
                    f"{case.files[0]}: case {case.name!r} appears twice; also in "
                    f"{cases[case.name].files[0]}; cases must not repeat, least of all between "
                    "splits"
                )
            cases[case.name] = case
            other, first = groups.setdefault(case.group, (split, case))
            if other != split:
                raise DataError(
                    f"{case.files[0]}: {case.group!r} is in the {split} split and, as "
                    f"{first.files[0]}, in the {other} split; keep each patient or "
                    "video in one split"
                )
