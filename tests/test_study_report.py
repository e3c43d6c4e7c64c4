"""A study's page says what its runs found, also where one is missing or nothing was found."""

import json
import re

import numpy as np
import pytest
from test_report import Page

from spectral_jax.evaluation import study as studies
from spectral_jax.reporting import write_study_report

GAIN = 0.06
CASES = [f"case {number}" for number in range(10)]
CLASSES = ["background", "anterior", "posterior"]
SPECTRAL = {"none": "none", "paper": "paper", "midband": "midband", "mcc": "matthews"}
SAMPLES = 500
SLOW_TO_DRAW = ("robustness", "calibration", "analysis", "interactions")


def describe(seeds):
    arms = {
        prefix + name: {"spatial": spatial, "spectral": spectral, "weight": 0.3, "model": "unet"}
        for prefix, spatial, names in (
            ("", "dice_ce", list(SPECTRAL)),
            ("ce-", "ce", ["none", "midband"]),
        )
        for name, spectral in SPECTRAL.items()
        if name in names
    }
    return {
        "name": "small",
        "title": "Two halves | of <one> thing",
        "small": True,
        "dataset": "decathlon",
        "on": ["elsewhere"],
        "arms": arms,
        "baselines": {arm: ("ce-" if arm.startswith("ce-") else "") + "none" for arm in arms},
        "seeds": list(range(seeds)),
        "revision": "c0ffee",
        "versions": {"jax": "0.10.2"},
        "machine": "a machine",
        "wall_seconds": 9000.0,
        "licence": "CC-BY-SA",
        "show_images": True,
    }


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def rows(score, **more):
    return [
        {"case": case, "class": name} | {key: of(score, c, k) for key, of in more.items()}
        for c, case in enumerate(CASES)
        for k, name in enumerate(CLASSES[1:])
    ]


def write_run(folder, rng, difficulty, gain, dataset, split):
    """All that a run leaves; its quality is that of the cases, the gain, and luck."""
    score = difficulty + gain + rng.normal(0, 0.004) + rng.normal(0, 0.01, (len(CASES), 2))
    facts = {"dataset": dataset, "split": split, "classes": CLASSES}
    file = f"{dataset}-{split}.json"
    dice = {"dice": lambda s, c, k: s[c, k], "recall": lambda s, c, k: s[c, k] - 0.02}
    write(
        folder / "evaluation" / file,
        facts
        | {"colors": ["#000000", "#0072b2", "#d55e00"], "distance_unit": "mm"}
        | {"cases": rows(score, **dice, hd95=lambda s, c, k: 10 * (1 - s[c, k]))},
    )
    levels = [
        {
            "severity": n,
            "dice": float(score.mean()) - 0.05 * n,
            "cases": rows(score - 0.05 * n, **dice),
        }
        for n in range(1, 6)
    ]
    write(
        folder / "robustness" / file,
        facts
        | {"clean": {"dice": float(score.mean()), "cases": rows(score, **dice)}}
        | {"corruptions": {"gaussian": levels, "motion_blur": levels}}
        | {"mean_corrupted_dice": float(score.mean()) - 0.15, "relative_drop": 0.2 - gain / 10},
    )
    edges = np.linspace(0, 1, 6)
    diagram = {
        "edges": edges.tolist(),
        "confidence": (edges[1:] - 0.1).tolist(),
        "accuracy": [None, 0.2, 0.4, 0.6, 0.85],
        "count": [0, 10, 20, 30, 400],
    }
    numbers = dict.fromkeys(("ece", "ace", "mce", "brier", "nll"), float(1 - score.mean()))
    stage = numbers | {"classwise": {}, "reliability": diagram}
    stages = {"as_trained": stage, "temperature_scaled": stage}
    calibration = [
        {"case": case, "ece_all": 0.1, "ece_union": 0.4 - score[c, 0] / 4}
        | {"brier": 0.2, "nll": 0.3 if c else None}
        for c, case in enumerate(CASES)
    ]
    write(
        folder / "calibration" / file,
        facts
        | {"temperature": 1.2, "cases": calibration}
        | {"regions": {"all": stages, "dilated_union": stages}},
    )
    objects = [
        {"case": case, "class": CLASSES[1], "size_px": 5 + 10 * c, "recall": score[c, 0]}
        | {"missed": bool(c == 0)}
        for c, case in enumerate(CASES)
    ]
    depths = [
        {"low_px": low, "high_px": high, "true_voxels": true, "missed_voxels": missed}
        for low, high, true, missed in ((0, 2, 50, 20), (2, 4, 20, 2), (4, None, 0, 0))
    ]
    correlation = {"spearman": 0.4, "p_value": 0.1, "pairs": 10}
    write(
        folder / "analysis" / file,
        facts
        | {"scored": CLASSES[1:], "objects": objects}
        | {"false_negatives": {name: {"by_boundary_distance": depths} for name in CLASSES[1:]}}
        | {"confusion": {"matrix": [[90, 5, 5], [3, 6, 1], [2, 2, 6]], "inter_class_share": 0.1}}
        | {"intra_class": {"by_class": {name: {"size_px": correlation} for name in CLASSES[1:]}}}
        | {"distance_from_training": correlation},
    )
    energy = {
        "slice": lambda s, c, k: 3,
        **dict.fromkeys(("energy_inside", "pointing"), lambda s, c, k: s[c, k] / 2),
    }
    summary = {"energy_inside": {"mean": float(score.mean()) / 2, "count": 20, "undefined": 0}}
    example = {"key": "highest", "case": CASES[0], "slice": 3, "class": CLASSES[1]}
    write(
        folder / "explanation" / file,
        facts
        | {"feature": "bottleneck", "method": "grad_cam", "cases": rows(score, **energy)}
        | {"summary": summary | {"chance": 0.05}, "examples": [example]}
        | {"randomisation": {"layers": ["head", "all"], "rank_correlation": [0.7, None]}},
    )
    label = np.zeros((24, 20), np.uint8)
    label[5:15, 5:15] = 1
    np.savez(
        folder / "explanation" / f"{dataset}-{split}-examples.npz",
        highest_image=rng.integers(0, 255, (24, 20), np.uint8),
        highest_label=label,
        highest_prediction=label,
        highest_map=rng.random((24, 20)).astype(np.float16),
    )
    strength = rng.uniform(0.9, 1.1, (4, 5))
    mean = (strength.mean(0) / strength.mean()).tolist()
    write(
        folder / "interactions" / file,
        {"dataset": dataset, "split": split, "grid": 4, "ratios": [0, 0.25, 0.5, 0.75, 1]}
        | {"orders": [0, 4, 7, 10, 14], "strength": mean, "half_a": mean, "half_b": mean}
        | {"standard_error": [0.1] * 5, "middle_share": 0.4, "by_image": strength.tolist()},
    )


def write_study(folder, gains, seeds=4):
    description = describe(seeds)
    write(folder / "study.json", description)
    difficulty = np.random.default_rng(7).uniform(0.5, 0.85, (len(CASES), 2))
    for number, arm in enumerate(description["arms"]):
        for seed in range(seeds):
            run = folder / "runs" / arm / f"seed{seed}"
            for dataset, split, gain in (
                ("decathlon", "test", gains.get(arm, 0)),
                ("elsewhere", "all", 0),
            ):
                rng = np.random.default_rng([number, seed, len(dataset)])
                write_run(run, rng, difficulty, gain, dataset, split)
            write(run / "config.json", {"train": {"epochs": 2.0, "seed": seed}})
            lines = [
                {"kind": "validation", "step": step, "dice": 0.5 + step / 100 + seed / 50}
                for step in (10, 20)
            ]
            (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study in which midband, and nothing else, gains in distribution."""
    folder = write_study(tmp_path_factory.mktemp("study"), {"midband": GAIN, "ce-midband": GAIN})
    results = studies.collect(folder, samples=SAMPLES)
    write_study_report(folder)
    return folder, results


def claim(results, key):
    return next(claim for claim in results["claims"] if claim["key"] == key)


def outcome(results, key, data_set="decathlon-test"):
    return next(d for d in results["data_sets"] if d["key"] == data_set)["outcomes"][key]


@pytest.mark.parametrize(
    ("key", "share"),
    [
        ("dice", 1),
        ("dice/posterior", 1),
        ("recall", 1),
        ("corrupted_dice", 1),
        ("ece_union", 1 / 4),  # lower is better, and a gain is positive
        ("cam_energy", 1 / 2),
    ],
)
def test_planted_effect_is_found(finished, key, share):
    _, results = finished
    found = outcome(results, key)["comparisons"]
    assert found["midband"]["low"] < GAIN * share < found["midband"]["high"]
    assert found["midband"]["low"] > 0
    assert found["midband"]["seeds"], found["midband"]["cases"] == (4, 10)
    assert found["paper"]["low"] < 0 < found["paper"]["high"]
    distance = outcome(results, "hd95")
    assert distance["comparisons"]["midband"]["mean"] == pytest.approx(
        distance["arms"]["none"]["mean"] - distance["arms"]["midband"]["mean"]
    )


def test_outcomes_without_effect_or_out_of_distribution(finished):
    _, results = finished
    for arm in ("paper", "midband", "mcc"):
        assert outcome(results, "dice", "elsewhere-all")["comparisons"][arm]["low"] < 0
    assert outcome(results, "missed_objects")["arms"]["none"]["mean"] == pytest.approx(0.1)
    # a relative drop is one number a run: compared over seeds alone
    drop = outcome(results, "relative_drop")["comparisons"]["midband"]
    assert (drop["mean"], drop["cases"]) == (pytest.approx(GAIN / 10), 1)


def test_verdicts(finished):
    _, results = finished
    inside = claim(results, "in_distribution")
    assert inside["arms"]["midband"]["verdict"].startswith("supported: +6")
    assert "more than the controls: mcc" in inside["arms"]["midband"]["verdict"]
    assert inside["status"] == "supported"
    assert "1 of 3 spectral arms is supported: midband, +6" in inside["sentence"]
    assert inside["arms"]["paper"]["status"] in ("undecided", "not supported")
    # without a control beside it, a gain is no evidence for the spectrum
    assert inside["arms"]["ce-midband"]["status"] == "undecided"
    assert "no control arm" in inside["arms"]["ce-midband"]["verdict"]
    outside = claim(results, "out_of_distribution")
    assert outside["status"] in ("undecided", "not supported")
    assert re.match(r"[123] of 3 spectral arms (is|are) .*, at best ", outside["sentence"])
    # four arms beside the two baselines, on seven claims, of which each has one data set
    assert results["family"]["size"] == 4 * 7


def test_correction_is_over_the_whole_family(finished):
    _, results = finished
    for entry in results["claims"]:
        for arm, of in entry["arms"].items():
            comparison = outcome(results, entry["outcome"], entry["data_set"])["comparisons"][arm]
            assert of["corrected_p"] >= comparison["p_value"]
    smallest = min(
        (
            outcome(results, entry["outcome"], entry["data_set"])["comparisons"][arm]["p_value"],
            of["corrected_p"],
        )
        for entry in results["claims"]
        for arm, of in entry["arms"].items()
    )
    assert smallest[1] == pytest.approx(28 * smallest[0])


def test_gain_no_greater_than_the_control(tmp_path):
    write_study(tmp_path, {"midband": GAIN, "mcc": GAIN})
    inside = claim(studies.collect(tmp_path, samples=SAMPLES), "in_distribution")
    assert inside["arms"]["mcc"]["verdict"].startswith("supported")
    assert inside["arms"]["midband"]["status"] != "supported"
    assert "but not more than the control mcc" in inside["arms"]["midband"]["verdict"]
    assert inside["status"] != "supported"


def test_what_is_missing_is_said_and_pairs_stay_pairs(tmp_path):
    write_study(tmp_path, {"midband": GAIN})
    runs = tmp_path / "runs"
    (runs / "midband/seed0/evaluation/decathlon-test.json").unlink()
    for file in (runs / "none/seed3").rglob("*.json"):
        file.unlink()
    path = runs / "midband/seed1/evaluation/decathlon-test.json"
    evaluation = json.loads(path.read_text())
    evaluation["cases"] = evaluation["cases"][2:][::-1]  # lacks a case, and in another order
    path.write_text(json.dumps(evaluation))
    results = studies.collect(tmp_path, samples=SAMPLES)
    assert results["missing"] == [
        "none, seed 3: everything",
        "midband, seed 0: evaluation/decathlon-test.json",
    ]
    found = outcome(results, "dice")["comparisons"]["midband"]
    assert (found["seeds"], found["cases"], found["cases_left_out"]) == (2, 9, 1)
    scores = []
    for arm in ("midband", "none"):
        for seed in (1, 2):
            file = runs / arm / f"seed{seed}/evaluation/decathlon-test.json"
            of_arm = json.loads(file.read_text())["cases"]
            scores.append(np.mean([r["dice"] for r in of_arm if r["case"] != CASES[0]]))
    expected = (scores[0] + scores[1] - scores[2] - scores[3]) / 2
    assert found["mean"] == pytest.approx(expected)


def test_kinds_that_nobody_measured(tmp_path):
    write_study(tmp_path, {}, seeds=2)
    (tmp_path / "runs/ce-none/seed1/evaluation/decathlon-test.json").unlink()
    for kind in ("robustness", "calibration", "analysis", "explanation", "interactions"):
        for file in tmp_path.rglob(f"{kind}/*"):
            file.unlink()
    results = studies.collect(tmp_path, samples=SAMPLES)
    assert claim(results, "calibration")["status"] == "not measured"
    inside = claim(results, "in_distribution")
    assert "one seed cannot tell" in inside["arms"]["ce-midband"]["verdict"]
    path = write_study_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path)
    assert "Better calibrated: not measured." in page.text
    assert "Not finished: 1 run without all results" in page.text
    assert "Missing: ce-none, seed 1: evaluation/decathlon-test.json." in page.text
    assert "Robustness" not in page.text


def test_page_shows_every_arm_and_asks_for_nothing(finished):
    folder, results = finished
    path = folder / "report.html"
    page = Page(path)
    for arm in results["study"]["arms"]:
        assert page.text.count(arm) > 3
    for entry in results["claims"]:
        assert f"{entry['title']}: {entry['status']}." in page.text
        assert entry["sentence"] in page.text
    for words in ("gaussian", "motion blur", "temperature scaled", "strength by order", "CC-BY-SA"):
        assert words in page.text
    for words in ("c0ffee", "a machine", "2.5 h", "train.epochs 2.0", "What the design could"):
        assert words in page.text
    assert all(source.startswith("data:image/") for source in page.attributes("src"))
    ids = page.attributes("id")
    assert len(ids) == len(set(ids))
    for target in page.attributes("href", "xlink:href"):
        assert target.removeprefix("#") in ids
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img")
    assert all(attrs["aria-label"] for tag, attrs in page.tags if tag == "svg")
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 2 * 6
    assert not re.search(r"@import|url\((?!#)", path.read_text())
    assert path.stat().st_size < 2.5e6


def test_pictures_only_where_they_may_be_shown(finished, tmp_path):
    folder, _ = finished
    results = json.loads((folder / "results.json").read_text())
    results["study"]["show_images"] = False
    results["data_sets"] = [
        {key: of for key, of in results["data_sets"][0].items() if key not in SLOW_TO_DRAW}
    ]
    results["claims"] = [c for c in results["claims"] if c["data_set"] == "decathlon-test"]
    write(tmp_path / "results.json", results)
    (tmp_path / "runs").symlink_to(folder / "runs")
    page = Page(write_study_report(tmp_path))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "Pictures of cases: this study does not show any." in page.text


def test_table_is_well_formed(finished):
    folder, results = finished
    text = (folder / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(results["study"]["arms"])
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    midband = next(line for line in lines if line.startswith("| midband "))
    assert re.search(r"\| \+6\.\d\d \[\+\d\.\d\d, \+\d\.\d\d\] \|", midband)
    assert "supported: in distribution" in midband
    assert "| baseline |" in lines[2]
    assert r"Two halves \| of \<one\> thing" in text
    assert text.count("\n- ") == len(results["claims"])


def test_folder_that_is_no_study(tmp_path):
    with pytest.raises(ValueError, match=r"has no study\.json"):
        studies.collect(tmp_path)
    with pytest.raises(ValueError, match=r"has no results\.json"):
        write_study_report(tmp_path)
    write(tmp_path / "study.json", describe(2))
    with pytest.raises(ValueError, match=r"no run of .* has been evaluated"):
        studies.collect(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("{", "is damaged"), ("{}", "another form")])
def test_damaged_file_is_named(tmp_path, text, words):
    write(tmp_path / "study.json", describe(1))
    path = tmp_path / "runs/none/seed0/evaluation/decathlon-test.json"
    write(path, {})
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"decathlon-test\.json .*{words}"):
        studies.collect(tmp_path)
