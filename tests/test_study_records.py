"""What a run leaves, what was registered, and whether the one fits the other."""

import json
import pathlib

import pytest

from spectral_jax.studies import records
from spectral_jax.studies.registration import (
    Registration,
    differences,
    read_registration,
    register,
)

EVALUATION = {
    "dataset": "acdc",
    "split": "test",
    "trained_on": "acdc",
    "classes": ["background", "a", "b"],
    "colors": ["#000000", "#111111", "#222222"],
    "distance_unit": "px",
    "cases": [
        {"case": case, "group": case[:2], "class": name, "dice": 0.123456789, "hd95": None}
        for case in ("p1f1", "p1f2", "p2f1")
        for name in "ab"
    ],
}


def robustness(*values):
    levels = [
        {"severity": 3, "dice": 0.5, "cases": [{"case": "p1f1", "class": "a", "dice": value}]}
        for value in values
    ]
    return {"clean": {"dice": 0.7}, "corruptions": {str(i): [x] for i, x in enumerate(levels)}}


def test_a_record_has_a_row_for_each_case_and_class_and_its_group():
    found = records.measured({"evaluation": EVALUATION, "robustness": robustness(0.2, 0.4, None)})
    rows = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    assert [(row["group"], row["case"], row["class"]) for row in rows] == [
        (case[:2], case, name) for case in ("p1f1", "p1f2", "p2f1") for name in "ab"
    ]
    assert rows[0]["dice"] == 0.123457
    assert rows[0]["hd95"] is None
    assert rows[0]["corrupted_dice"] == pytest.approx(0.3)
    assert rows[1]["corrupted_dice"] is None
    assert found["details"]["robustness"]["0"] == [0.7, 0.5]


def test_records_are_read_back_in_order_and_a_damaged_one_is_named(tmp_path):
    for arm, seed in (("twin", 100), ("none", 101), ("none", 100)):
        file = records.record_file(tmp_path, arm, seed)
        records.write_record(file, {"arm": arm, "seed": seed})
    found = [(record["arm"], record["seed"]) for record in records.read_records(tmp_path)]
    assert found == [("none", 100), ("none", 101), ("twin", 100)]
    file.write_text('{"arm": "no')
    with pytest.raises(ValueError, match=r"none-seed100\.json .*delete it"):
        list(records.read_records(tmp_path))


REGISTERED = {
    "seeds": [100, 101],
    "arms": {"none": {"objective.spectral": "none"}, "paper": {"objective.weight": 0.3}},
    "config": {"objective": {"spectral": "paper", "weight": 0.1}, "train": {"epochs": 16.0}},
}
DEFAULTS = {"objective": {"spectral": "paper", "weight": 0.1, "new": 0}, "train": {"epochs": 150.0}}


@pytest.mark.parametrize(
    ("arm", "seed", "objective", "epochs", "expected"),
    [
        ("paper", 100, {"spectral": "paper", "weight": 0.3, "new": 0}, 16.0, []),
        ("paper", 100, {"spectral": "paper", "weight": 0.3}, 16.0, ["objective.new is None"]),
        ("paper", 100, {"spectral": "paper", "weight": 0.3, "new": 1}, 16.0, ["new is 1"]),
        ("paper", 102, {"spectral": "paper", "weight": 0.3, "new": 0}, 16.0, ["seed 102"]),
        (
            "none",
            100,
            {"spectral": "none", "weight": 0.1, "new": 0},
            8.0,
            ["8.0, registered as 16"],
        ),
        ("mcc", 100, {}, 16.0, ["arm mcc is not registered"]),
    ],
)
def test_what_departs_from_the_registration_is_said(arm, seed, objective, epochs, expected):
    config = {"objective": objective, "train": {"epochs": epochs, "seed": seed}}
    found = differences(
        Registration(REGISTERED, "hash", pathlib.Path()), arm, seed, config, DEFAULTS
    )
    assert len(found) == len(expected)
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence


def test_registering_keeps_what_people_wrote_and_changes_the_hash(tmp_path):
    study = tmp_path / "mine.py"
    with pytest.raises(ValueError, match="write there what is asked"):
        register(study, {"seeds": [1]})
    file = tmp_path / "mine.registration.json"
    file.write_text(json.dumps({"hypotheses": ["it helps"], "seeds": [7]}))
    before = read_registration(study)
    after = register(study, {"seeds": [1, 2]})
    assert after.values == {"hypotheses": ["it helps"], "seeds": [1, 2]}
    assert before.sha256 != after.sha256
    assert read_registration(study) == after
    assert read_registration(tmp_path / "other.py") is None
