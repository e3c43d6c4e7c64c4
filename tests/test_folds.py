"""Folds: every case is held out once, no group is parted, and groups come from names or a table."""

import json

import pytest
from test_folder import write

from spectral_jax.data.datasets import DATASETS, Case, DataError, Found, prepare
from spectral_jax.data.datasets.splits import decide
from spectral_jax.data.sources import Split
from spectral_jax.evaluation.folds import join_folds
from spectral_jax.metrics import METRICS
from spectral_jax.training.config import ConfigError, parse_config


def cases(groups, prefix="p"):
    """Two cases of each group."""
    return [
        Case(f"{prefix}{group}_{frame}", (), lambda: None, group=f"{prefix}{group}")
        for group in range(groups)
        for frame in range(2)
    ]


def names(cases):
    return {case.name for case in cases}


def decide_folds(found, folds, **options):
    options = {"validation": 0.1, "resplit": False} | options
    return [decide(found, fold=fold, folds=folds, **options)[0] for fold in range(folds)]


@pytest.mark.parametrize("folds", [2, 5, 13])
def test_each_case_is_held_out_once_and_no_group_is_parted(folds):
    pool = cases(13)
    parts = decide_folds(Found({"all": pool}), folds)
    held_out = [name for part in parts for name in sorted(names(part["fold"]))]
    assert sorted(held_out) == sorted(names(pool))
    sizes = [len(part["fold"]) for part in parts]
    assert max(sizes) - min(sizes) <= 2  # a group
    for part in parts:
        assert set(part) == {"train", "validation", "fold"}
        assert sum(map(len, part.values())) == len(pool)
        groups = [{case.group for case in of} for of in part.values()]
        assert sum(map(len, groups)) == 13
    again = decide_folds(Found({"all": pool[::-1]}), folds)
    assert [names(part["fold"]) for part in again] == [names(part["fold"]) for part in parts]


def test_a_published_test_split_is_not_part_of_the_folds():
    splits = {"train": cases(6), "validation": cases(2, "v"), "test": cases(2, "t")}
    parts = decide_folds(Found(splits), 4)
    held_out = set.union(*(names(part["fold"]) for part in parts))
    assert held_out == names(splits["train"]) | names(splits["validation"])
    assert all(names(part["test"]) == names(splits["test"]) for part in parts)
    parts = decide_folds(Found(splits), 4, resplit=True)
    assert all("test" not in part for part in parts)
    assert sum(len(part["fold"]) for part in parts) == 20


def test_published_folds_are_used():
    pool = cases(3)
    published = {case.name: number % 2 for number, case in enumerate(pool[2:])}
    loose = [Case(case.name, (), case.load) for case in pool]  # as nnU-Net has no groups
    parts = decide_folds(Found({"train": loose}, folds=published), 2, validation=0.0)
    assert [names(part["fold"]) for part in parts] == [{"p1_0", "p2_0"}, {"p1_1", "p2_1"}]
    assert all({"p0_0", "p0_1"} < names(part["train"]) for part in parts)
    with pytest.raises(DataError, match=r"there are 2 folds as published.*data\.folds=2"):
        decide_folds(Found({"train": loose}, folds=published), 5)


def test_more_folds_than_groups_are_refused():
    with pytest.raises(DataError, match="fold 0 of 5: there are 3 folds of 3 patients"):
        decide_folds(Found({"all": cases(3)}), 5)
    with pytest.raises(ConfigError, match=r"data\.fold=5: expected below data\.folds=5"):
        parse_config({"data": {"fold": 5}})


def groups_of(root, **options):
    folder = prepare(DATASETS["folder"], root=root, data_dir=root.parent / "prepared", **options)
    return dict(Split(folder, "all").groups), folder


def test_groups_from_names_and_from_a_table(tmp_path):
    root = tmp_path / "mine"
    write(root, ["anna_1", "anna_2", "ben_1", "ben_2", "carl_1"])
    by_name, folder = groups_of(root, group_pattern="[a-z]+", fold=1, folds=3)
    assert by_name["anna_2"] == "anna"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["splits"]["fold"]["cases"] in (1, 2)
    (root / "cases.csv").write_text(
        "name, centre, scanner\nanna_1.png,north,a\nanna_2,north,b\nben_1,south,a\n"
        "ben_2,north,b\ncarl_1,south,\n"
    )
    by_table, _ = groups_of(root, group_column="centre")
    assert by_table == dict.fromkeys(by_name, "north") | {"ben_1": "south", "carl_1": "south"}
    for options, message in (
        ({"group_column": "hospital"}, "no column 'hospital'.*name, centre, scanner"),
        ({"group_column": "scanner"}, "the case 'carl_1' has no scanner"),
        ({"group_pattern": "[A-Z]+"}, "finds nothing in this name"),
        ({"group_pattern": "("}, "no regular expression"),
        ({"group_pattern": "x", "group_column": "centre"}, "choose one"),
    ):
        with pytest.raises(DataError, match=message):
            groups_of(root, **options)
    write(root, ["dora_1"])
    with pytest.raises(DataError, match=r"cases\.csv: no line for the case 'dora_1'"):
        groups_of(root, group_column="centre")


def scores(names, **facts):
    rows = [{"case": name, "class": "disc"} | dict.fromkeys(METRICS, 0.5) for name in names]
    return {
        **{"dataset": "folder", "classes": ["background", "disc"], "distance_unit": "px"},
        **{"nsd_tolerance": 1.0, "threshold": None, "checkpoint": {"name": "best", "step": 3}},
        **{"cases": rows, "wall_seconds": 1.0, **facts},
    }


def test_the_scores_of_folds_are_joined_once_per_case():
    joined = join_folds([scores(["a", "b"]), scores(["c"])])
    assert [(row["case"], row["fold"]) for row in joined["cases"]] == [("a", 0), ("b", 0), ("c", 1)]
    assert joined["summary"]["dice"]["count"] == 3
    assert joined["checkpoint"] == {"name": "best", "step": [3, 3]}
    with pytest.raises(ValueError, match="folds 0 and 1 both scored the case 'b'"):
        join_folds([scores(["a", "b"]), scores(["b"])])
    with pytest.raises(ValueError, match="fold 1 was scored with another distance_unit"):
        join_folds([scores(["a"]), scores(["b"], distance_unit="mm")])
