"""What a study's records say, by results.json, scores.csv.gz, the page and the documentation."""

import csv
import gzip
import json
import pathlib
import re
import subprocess

import numpy as np
import pytest
from test_run_page import Page

from spectral_jax.reporting import write_study_report
from spectral_jax.studies import records
from spectral_jax.studies.registration import analysis_facts, read_registration
from spectral_jax.studies.results import collect, without_covariate

GAIN = 0.06
PATIENTS = 12
CLASSES = ["background", "left", "right"]
ARMS = {
    "none": {"objective.spectral": "none"},
    "midband": {"objective.spectral": "midband"},
    "twin": {"objective.spectral": "concordance"},
}
PRIMARY = [
    {"name": name, "contrast": contrast, "outcome": "dice", "data_set": "acdc-test", "margin": 0.01}
    for name, contrast in (
        ("midband - none", {"midband": 1, "none": -1}),
        ("midband - twin", {"midband": 1, "twin": -1}),
        ("twin - none", {"twin": 1, "none": -1}),
    )
]
DOCS = pathlib.Path(__file__).parents[1] / "docs" / "studies.md"


def measured(rng, data_set, difficulty, gain):
    """What a record has of one data set, of two frames a patient."""
    luck = rng.normal(0, 0.003)
    cases = []
    for patient in range(PATIENTS):
        for frame in range(2):
            for number, name in enumerate(CLASSES[1:]):
                dice = difficulty[patient, number] + gain + luck + rng.normal(0, 0.004)
                cases.append(
                    {
                        "case": f"p{patient}f{frame}",
                        "group": f"p{patient}",
                        "class": name,
                        "dice": dice,
                        "recall": dice - 0.02,
                        "hd95": 10 * (1 - dice),
                        "true_voxels": 100,
                        "predicted_voxels": 90,
                        "confused_voxels": 3,
                    }
                )
    facts = {"classes": CLASSES, "colors": ["#000000", "#0072b2", "#d55e00"]}
    dataset, _, split = data_set.partition("-")
    names = {"dataset": dataset, "split": split, "trained_on": "acdc", "distance_unit": "px"}
    evaluation = facts | names | {"cases": cases}
    mean = float(np.mean([row["dice"] for row in cases]))
    corrupted = [row | {"dice": row["dice"] - 0.1} for row in cases]
    levels = [{"severity": 3, "dice": mean - 0.1, "cases": corrupted}]
    robustness = {"clean": {"dice": mean}, "corruptions": {"noise": levels, "motion_blur": levels}}
    diagram = {
        "edges": [0, 0.5, 1],
        "confidence": [0.4, 0.9],
        "accuracy": [None, 0.85],
        "count": [0, 400],
    }
    stage = {"ece": 1 - mean, "reliability": diagram}
    stages = {"as_trained": stage, "temperature_scaled": stage}
    calibration = {
        "temperature": 1.2,
        "regions": {"all": stages, "dilated_union": stages},
        "ranking": [
            {"case": row["case"], "class": row["class"], "recall_at_true_volume": row["dice"]}
            for row in cases
        ],
        "cases": [
            {"case": row["case"], "ece_truth": 0.2, "ece_truth_scaled": 0.3 - row["dice"] / 4}
            | {"accuracy_truth": row["dice"], "ece_all": 0.1, "ece_union": 0.1}
            | {"brier": 0.2, "nll": 0.3}
            for row in cases[::2]
        ],
    }
    kinds = {"evaluation": evaluation, "calibration": calibration}
    return records.measured(kinds | ({"robustness": robustness} if split == "test" else {}))


def write_study(folder, gains, seeds=(100, 101, 102, 103), registration="hash", failed=()):
    description = {
        "name": "small",
        "title": "Two halves | of <one> thing",
        "dataset": "acdc",
        "split": "test",
        "on": ["elsewhere"],
        "arms": ARMS,
        "seeds": list(seeds),
        "measurements": {},
        "registration": registration,
        "machine": "a machine",
        "licences": {"acdc": "CC-BY-SA"},
        "show_images": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(description))
    difficulty = np.random.default_rng(7).uniform(0.5, 0.85, (PATIENTS, 2))
    for number, arm in enumerate(ARMS):
        for seed in seeds:
            rng = np.random.default_rng([1, number, seed])
            gain = -0.7 if (arm, seed) in failed else gains.get(arm, 0)
            record = {
                "arm": arm,
                "seed": seed,
                "started": "2026-11-25T15:00:00+00:00",
                "finished": "2026-11-25T16:00:00+00:00",
                "registration": registration,
                "departures": [],
                "checkpoint": {"name": "best", "step": 20},
                "validation": [[10, 0.5], [20, 0.6 + gain]],
                "config": {},
                "versions": {"revision": "c0ffee", "jax": "0.10.2"},
                "data": {},
                "data_sets": {
                    "acdc-test": measured(rng, "acdc-test", difficulty, gain),
                    "elsewhere-all": measured(rng, "elsewhere-all", difficulty - 0.1, 0),
                },
            }
            records.write_record(records.record_file(folder, arm, seed), record)
    return folder


def git(folder, *arguments, date="2026-11-25T12:00:00+00:00"):
    names = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b"}
    names |= {"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b", "GIT_COMMITTER_DATE": date}
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, env=names)


def register(folder, date="2026-11-25T12:00:00+00:00", **changes):
    """A registration that git took in at that time."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"primary": PRIMARY, "unit": "patient", "rule": "", "code": analysis_facts()}
    values |= {"hypotheses": ["It helps."], "stopping": "After four seeds."} | changes
    (folder / "small.registration.json").write_text(json.dumps(values))
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "registered", date=date)
    return read_registration(folder / "small.py")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A registered study in which midband, and nothing else, gains in distribution."""
    registration = register(tmp_path_factory.mktemp("studies"))
    folder = tmp_path_factory.mktemp("results")
    write_study(folder, {"midband": GAIN}, registration=registration.sha256)
    results = collect(folder, registration)
    write_study_report(folder)
    return folder, results


def outcome(results, key, data_set="acdc-test"):
    return next(of for of in results["data_sets"] if of["key"] == data_set)["outcomes"][key]


@pytest.mark.parametrize(
    ("key", "share"),
    [
        ("dice", 1),
        ("recall", 1),
        ("recall_at_true_volume", 1),
        ("hd95", -10),
        ("ece_truth_scaled", -1 / 4),
        ("ece_equal_accuracy", 0),  # all of that gain is accuracy
        ("corruption_change", 0),
        ("inter_class", 0),
    ],
)
def test_planted_effect_is_found(finished, key, share):
    _, results = finished
    found = outcome(results, key)["comparisons"]["midband - none"]
    if share:
        assert found["low"] < GAIN * share < found["high"]
        assert found["low"] * found["high"] > 0
    else:
        assert found["mean"] == pytest.approx(0, abs=1e-5)
    assert (found["seeds"], found["units"]) == (4, PATIENTS)  # not 24 frames


def test_verdicts_are_of_primary_comparisons_alone(finished):
    _, results = finished
    found = {entry["name"]: entry for entry in results["primary"]}
    assert found["midband - none"]["verdict"] == "gain"
    assert found["midband - twin"]["verdict"] == "gain"
    assert found["twin - none"]["verdict"] == "no relevant gain"
    assert sorted(entry["level"] for entry in found.values()) == pytest.approx(
        [0.05 / 3, 0.05 / 2, 0.05]
    )
    assert results["registration"]["status"] == "as registered"
    assert "verdict" not in json.dumps(results["data_sets"])


def test_a_registration_younger_than_a_run_does_not_count(tmp_path):
    late = register(tmp_path / "a", date="2026-11-25T15:00:01+00:00")
    folder = write_study(tmp_path / "r", {"midband": GAIN}, registration=late.sha256)
    found = collect(folder, late)["registration"]
    assert found["status"] == "not registered"
    assert "after the first run began" in found["why"][0]
    write_study_report(folder)
    text = (folder / "report.md").read_text()
    assert "Not registered: it was committed at 2026-11-25T15:00:01" in text
    assert "gain (not registered)" in text


def test_a_registration_that_changed_or_was_not_committed_does_not_count(tmp_path):
    before = register(tmp_path / "a")
    folder = write_study(tmp_path / "r", {}, registration=before.sha256)
    changed = register(tmp_path / "a", primary=PRIMARY[:1])
    assert "12 of 12 runs began with another" in collect(folder, changed)["registration"]["why"][0]
    file = tmp_path / "a" / "small.registration.json"
    file.write_text(file.read_text() + " ")
    edited = read_registration(file.with_name("small.py"))
    assert "no commit holds this" in collect(folder, edited)["registration"]["why"][1]
    assert collect(folder)["registration"]["why"] == ["there is no registration"]


def test_departures_are_printed(tmp_path):
    registration = register(tmp_path / "a", code={"file": "statistics.py", "sha256": "other"})
    folder = write_study(tmp_path / "r", {}, registration=registration.sha256)
    file = records.record_file(folder, "twin", 101)
    record = json.loads(file.read_text())
    record["departures"] = ["config.train.epochs is 8.0, registered as 16.0"]
    records.write_record(file, record)
    assert collect(folder, registration)["registration"]["status"] == "departs"
    text = Page(write_study_report(folder)).text
    assert "twin, seed 101: config.train.epochs is 8.0, registered as 16.0" in text
    assert "statistics.py is not the registered one" in text


def test_an_unfinished_study_has_no_verdict_and_compares_whole_seeds(tmp_path):
    registration = register(tmp_path / "a")
    folder = write_study(tmp_path / "r", {"midband": GAIN}, registration=registration.sha256)
    records.record_file(folder, "midband", 103).unlink()
    results = collect(folder, registration)
    assert results["missing"] == ["midband, seed 103"]
    assert {entry["verdict"] for entry in results["primary"]} == {"not finished"}
    assert [entry["seeds"] for entry in results["primary"]] == [3, 3, 4]
    assert "Not finished: 1 of 12 runs" in Page(write_study_report(folder)).text


def test_failed_runs_are_counted_and_stay_in_the_means(tmp_path):
    folder = write_study(tmp_path, {}, failed=[("twin", 102)])
    results = collect(folder)
    assert {(of["arm"], of["seed"]) for of in results["failed"]} == {("twin", 102)}
    twin = outcome(results, "dice")["arms"]["twin"]
    assert len(twin["by_seed"]) == 4
    assert twin["mean"] < 0.55
    write_study_report(folder)
    assert "| twin | 1 of 4 | seed 102: left" in (folder / "report.md").read_text()


def test_undefined_distances_leave_the_patient_out_and_say_so(tmp_path):
    folder = write_study(tmp_path, {})
    file = records.record_file(folder, "none", 100)
    record = json.loads(file.read_text())
    data_set = record["data_sets"]["acdc-test"]
    data_set["rows"][0][data_set["columns"].index("hd95")] = None
    records.write_record(file, record)
    found = outcome(collect(folder), "hd95")["comparisons"]["midband - none"]
    assert (found["units"], found["units_left_out"]) == (PATIENTS - 1, 1)
    write_study_report(folder)
    text = (folder / "report.md").read_text()
    assert "(1 undefined)" in text
    assert "11 units, 1 left out" in text


def test_what_a_covariate_explains_is_taken_off(rng):
    x, rest = rng.standard_normal((2, 4, 9))
    x -= x.mean()
    rest -= rest.mean()
    rest -= x * (x * rest).sum() / (x**2).sum()
    np.testing.assert_allclose(without_covariate(2.0 * x + rest + 5, x), rest + 5, atol=1e-12)


def test_scores_are_a_table_for_anyone(finished):
    folder, results = finished
    path = folder / "scores.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = list(csv.DictReader(file))
    first = ["arm", "seed", "dataset", "group", "case", "class"]
    assert list(rows[0])[:6] == first
    assert len({tuple(row[key] for key in first) for row in rows}) == len(rows)
    assert len(rows) == 12 * 2 * (2 * PATIENTS * 2 + 2 * PATIENTS)
    means = {}
    for row in rows:
        if row["dataset"] == "acdc-test" and row["class"] and row["arm"] == "twin":
            means.setdefault(row["seed"], []).append(float(row["dice"]))
    by_seed = outcome(results, "dice")["arms"]["twin"]["by_seed"]
    for seed, values in means.items():
        assert np.mean(values) == pytest.approx(by_seed[int(seed)], abs=1e-6)
    before = path.read_bytes()
    collect(folder)
    assert path.read_bytes() == before


def test_the_ten_lines_of_the_documentation_recompute_the_interval(finished, capsys):
    pytest.importorskip("pandas", reason="the documentation's example reads with pandas")
    folder, results = finished
    code = re.search(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    path = "experiments/results/heart/scores.csv.gz"
    assert path in code
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    exec(code.replace(path, str(folder / "scores.csv.gz")), {})
    printed = [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", capsys.readouterr().out)]
    found = outcome(results, "dice")["comparisons"]["midband - none"]
    expected = [100 * found[key] for key in ("mean", "low", "high")]
    np.testing.assert_allclose(printed, expected, rtol=1e-5)


def test_page_shows_every_comparison_and_asks_for_nothing(finished):
    folder, results = finished
    path = folder / "report.html"
    page = Page(path)
    assert "run as registered." in page.text
    for data_set in results["data_sets"]:
        for of in data_set["outcomes"].values():
            for found in of["comparisons"].values():
                scale, digits = (100, 2) if of["unit"] == "points" else (1, 3)
                assert f"{scale * found['mean']:+.{digits}f} [" in page.text
    for words in ("none", "midband - twin", "motion blur", "temperature scaled", "CC-BY-SA"):
        assert words in page.text
    for words in ("c0ffee", "a machine", "It helps.", "After four seeds.", "12 units, 24 cases"):
        assert words in page.text
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for target in page.attributes("href", "xlink:href"):
        assert target.removeprefix("#") in ids
    assert all(attrs["aria-label"] for tag, attrs in page.tags if tag == "svg")
    assert not re.search(r"@import|url\((?!#)", path.read_text())


def test_tables_are_well_formed(finished):
    folder, _ = finished
    text = (folder / "report.md").read_text()
    assert r"Two halves \| of \<one\> thing" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        lines = block.splitlines()
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert re.search(
        r"\| midband - none \| gain \| \+[56]\.\d\d \\\[.*\| 9[78]\.\d % \|.*4 seeds", text
    )


def test_folder_that_is_no_study(tmp_path):
    with pytest.raises(ValueError, match=r"has no study\.json"):
        collect(tmp_path)
    with pytest.raises(ValueError, match=r"has no results\.json"):
        write_study_report(tmp_path)
    write_study(tmp_path, {}, seeds=())
    with pytest.raises(ValueError, match=r"no record of a run yet"):
        collect(tmp_path)
