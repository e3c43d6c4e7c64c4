"""Robustness: clean scores are those of the evaluation, corrupted ones fall, all is written."""

import dataclasses
import json

import numpy as np
import pytest
from fake_split import make_split
from test_predictor import trained

from spectral_jax.data.corruptions import corrupt
from spectral_jax.data.sources import Split, resize_image
from spectral_jax.evaluation.cases import evenly_chosen
from spectral_jax.evaluation.evaluate import evaluate
from spectral_jax.evaluation.robustness import measure_robustness
from spectral_jax.inference.predictor import Predictor

CASES = 3


@pytest.fixture(scope="module")
def measured(mni152, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    measure_robustness(
        trained(image_size=64),
        Split(mni152, "test"),
        workdir,
        corruptions=("gaussian", "gamma"),
        severities=(1, 5),
        max_cases=CASES,
    )
    return json.loads((workdir / "robustness" / "mni152-test.json").read_text())


def test_clean_scores_are_those_of_the_evaluation(measured, mni152, tmp_path):
    evaluated = evaluate(trained(image_size=64), Split(mni152, "test"), tmp_path)
    rows = {(row["case"], row["class"]): row for row in evaluated["cases"]}
    assert len(measured["clean"]["cases"]) == 2 * CASES
    for row in measured["clean"]["cases"]:
        for metric in ("dice", "recall"):
            value = rows[row["case"], row["class"]][metric]
            assert row[metric] == (None if np.isnan(value) else value)


def test_islands_are_taken_away_where_the_run_decided_so(mni152, tmp_path):
    """As `evaluate` does: white matter that is not the largest component becomes background."""
    own = Split(mni152, "test")
    split = make_split(own.info, {name: own.volume(name) for name in own.cases[:1]})
    clean = {}
    for largest in ((), (2,)):
        network = dataclasses.replace(trained(image_size=64), largest=largest)
        scored = evaluate(network, split, tmp_path)["cases"]
        options = {"corruptions": ("gamma",), "severities": (1,)}
        found = measure_robustness(network, split, tmp_path, **options)["clean"]["cases"]
        assert [row["dice"] for row in found] == [row["dice"] for row in scored]
        clean[largest] = [row["dice"] for row in found]
    assert clean[()] != clean[2,]


def test_corrupted_scores_are_those_of_the_corrupted_image(measured, mni152):
    split = Split(mni152, "test")
    row = measured["corruptions"]["gaussian"][1]["cases"][-1]
    volume = split.volume(row["case"])
    image = resize_image(volume.image[0], (64, 64))[None]
    image = corrupt(image, "gaussian", 5, modality="T1 MRI", case=row["case"])
    probabilities = next(Predictor(trained(image_size=64)).slices([image]))
    labels = resize_image(probabilities, volume.label.shape[1:]).argmax(-1)
    white, truth = labels == 2, volume.label[0] == 2
    assert row["class"] == "white matter"
    assert row["dice"] == pytest.approx(2 * (white & truth).sum() / (white.sum() + truth.sum()))


def test_scores_fall_and_the_means_are_means(measured):
    assert measured["max_cases"] == CASES
    assert [level["severity"] for level in measured["corruptions"]["gamma"]] == [1, 5]
    noise = [level["dice"] for level in measured["corruptions"]["gaussian"]]
    gamma = [level["dice"] for level in measured["corruptions"]["gamma"]]
    clean = measured["clean"]["dice"]
    assert clean > noise[0] > noise[1]
    mean = np.mean([np.mean(noise), np.mean(gamma)])
    assert measured["mean_corrupted_dice"] == pytest.approx(mean)
    assert measured["relative_drop"] == pytest.approx((clean - mean) / clean)
    by_class = {}
    for row in measured["clean"]["cases"]:
        if row["dice"] is not None:
            by_class.setdefault(row["class"], []).append(row["dice"])
    assert clean == pytest.approx(np.mean([np.mean(dice) for dice in by_class.values()]))


def test_volumes_in_patches(mni152, tmp_path):
    result = measure_robustness(
        trained(patch_size=(1, 64, 64)),
        Split(mni152, "test"),
        tmp_path,
        corruptions=("brightness",),
        severities=(3,),
        max_cases=1,
    )
    assert 0 <= result["corruptions"]["brightness"][0]["dice"] <= 1


def test_mistakes_are_found_before_the_work(mni152, tmp_path):
    network, split = trained(image_size=64), Split(mni152, "test")
    with pytest.raises(ValueError, match="'fog': choose one of"):
        measure_robustness(network, split, tmp_path, corruptions=("fog",))
    with pytest.raises(ValueError, match="max_cases=0"):
        measure_robustness(network, split, tmp_path, max_cases=0)
    assert not list(tmp_path.iterdir())


def test_cases_are_spread_evenly():
    assert evenly_chosen(list("abcdefg"), 3) == ["a", "d", "g"]
    assert evenly_chosen(list("ab"), None) == evenly_chosen(list("ab"), 5) == ["a", "b"]
