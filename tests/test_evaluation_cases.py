"""What measurements share: cases in turn, what interrupts them, the file that they leave."""

import functools
import json
import os
import signal

import jax
import numpy as np
import pytest
import tiny_networks

from spectral_jax.commands.measure import without_own_data
from spectral_jax.commands.study import MEASUREMENTS
from spectral_jax.data.sources import DatasetInfo, Split
from spectral_jax.evaluation import cases, explain, interactions
from spectral_jax.evaluation.cases import by_case, evenly_chosen, fullest_slices, interruptible
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.models import build_model
from spectral_jax.training.config import parse_config
from spectral_jax.training.distributed import Preempted

FEW = {  # of each measurement, so that it is done in seconds
    "evaluation": {},
    "calibration": {"max_cases": 2},
    "robustness": {"max_cases": 2, "corruptions": ("gamma",), "severities": (5,)},
    "analysis": {},
    "explanation": {"max_cases": 2},
    "interactions": {"images": 2, "grid": 2, "pairs": 2, "contexts": 2, "ratios": (0, 1)},
}


@functools.cache
def network(activation="softmax"):
    """An untrained UNet that knows the classes of the template."""
    info = DatasetInfo("mni152", "T1 MRI", ("background", "grey matter", "white matter"), (), 1)
    values = {"data": {"image_size": 32}, "model": {"activation": activation}}
    config = parse_config(values)
    channels = 2 if activation == "sigmoid" else 3
    model = build_model("unet", num_classes=channels, **tiny_networks.UNET)
    images = jax.random.uniform(jax.random.key(0), (1, 32, 32, 1))
    return TrainedModel(config, info, model, jax.jit(model.init)(jax.random.key(0), images), step=3)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def test_what_is_found_comes_in_the_order_of_the_cases():
    names = ["b", "a", "c"]
    assert by_case(names, str.upper, "letters") == ["B", "A", "C"]
    assert by_case([], str.upper, "letters") == []


def test_sigterm_ends_the_work_after_a_step_and_is_answered_as_before_then():
    def measure(name):
        if name == "b":
            terminate()
        seen.append(name)

    seen = []
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match=r"SIGTERM: stopped at case 2 of 3 \(letters\)"):
        by_case(["a", "b", "c"], measure, "letters")
    assert seen == ["a", "b"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_error_leaves_signals_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), interruptible(2, "letters"):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_every_measurement_answers_sigterm_and_writes_nothing(kind, mni152, tmp_path, monkeypatch):
    """In the part of it that takes long."""
    module, name = {
        "explanation": (explain, "insertion_deletion"),
        "interactions": (interactions, "interaction_strengths"),
    }.get(kind, (cases.MatchedCases, "volume"))
    original = getattr(module, name)

    def interrupted(*args, **options):
        terminate()
        return original(*args, **options)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(Preempted, match="SIGTERM: stopped at"):
        MEASUREMENTS[kind](network(), Split(mni152, "test"), mni152, tmp_path, **FEW[kind])
    assert not any(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_every_result_says_of_what_it_is(kind, mni152, tmp_path):
    """Under the name that the data set is called by, such as that of another hospital's."""
    options = FEW[kind] | {"checkpoint": "last", "dataset": "elsewhere"}
    MEASUREMENTS[kind](network(), Split(mni152, "validation"), mni152, tmp_path, **options)
    result = json.loads((tmp_path / kind / "elsewhere-validation.json").read_text())
    assert result["dataset"] == "elsewhere"
    assert result["split"] == "validation"
    assert result["trained_on"] == "mni152"
    assert result["classes"] == ["background", "grey matter", "white matter"]
    assert result["checkpoint"] == {"name": "last", "step": 3}
    assert result["wall_seconds"] > 0


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_classes_that_may_overlap_are_measured_or_refused(kind, mni152, tmp_path):
    arguments = (network("sigmoid"), Split(mni152, "test"), mni152, tmp_path)
    if kind in ("calibration", "analysis"):
        with pytest.raises(ValueError, match=r"exclude each other \(softmax\)"):
            MEASUREMENTS[kind](*arguments, **FEW[kind])
        return
    result = MEASUREMENTS[kind](*arguments, **FEW[kind])
    if kind == "interactions":
        assert np.array(result["by_image"]).min() > 0
    elif kind == "explanation":
        assert {row["class"] for row in result["cases"]} == {"grey matter", "white matter"}


def test_measurements_of_one_network_do_without_the_data_of_its_training(tmp_path):
    seen = without_own_data(lambda *args, **options: {"args": args, "options": options})
    found = seen("network", "split", "own", tmp_path, checkpoint="last")
    assert found == {
        "args": ("network", "split", tmp_path),
        "options": {"checkpoint": "last"},
    }


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_fullest_slices_have_the_masks_of_their_classes(activation, mni152):
    split = Split(mni152, "test")
    pictures = fullest_slices(network(activation), split, 3)
    assert [picture.case for picture in pictures] == evenly_chosen(split.cases, 3)
    for picture in pictures:
        truth = split.volume(picture.case).label[0]
        assert picture.index is None
        assert picture.input.shape == (32, 32, 1)
        assert picture.input.dtype == np.float32
        assert picture.masks.keys() == {1, 2}
        for number, mask in picture.masks.items():
            assert mask.mean() == pytest.approx((truth == number).mean(), abs=0.05)
        assert not (picture.masks[1] & picture.masks[2]).any()
