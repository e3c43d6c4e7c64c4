"""The benchmarks run in their quick form, with whatever of PyTorch, MONAI and medpy is there."""

import time

import numpy as np
import pytest

from experiments.benchmarks import loss, metrics, operations, scaling, step, timing


def test_compare_takes_turns_of_two_calls_and_puts_ours_first():
    order = []

    def side(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    result = timing.compare("x", {"ours": side("a", 0.002), "theirs": side("b", 0.02)}, 3)
    assert order == ["a", "a", "b", "b"] * 3
    assert result["ratio_to_ours"]["theirs"]["median"] > 2
    assert result["seconds"]["ours"]["median"] >= 0.002


def test_table_shows_ratios_and_facts():
    results = [
        timing.compare(
            "x", {"ours": lambda: None, "theirs": lambda: None}, 2, target="at least 1.5"
        ),
        timing.fact("y", 12, "mm", "below 20"),
    ]
    table = timing.markdown("name", {"results": results})
    assert "| x: theirs |" in table
    assert "at least 1.5" in table
    assert "| y | 12 mm | | | below 20 |" in table


def test_operations():
    assert len(operations.convolutions(step.CASES["unet64"])) == 18
    assert operations.convolutions(step.CASES["quick"]) == [
        (2, 32, 1, 4),
        (2, 32, 4, 4),
        (2, 16, 4, 8),
        (2, 16, 8, 8),
        (2, 32, 8, 4),
        (2, 32, 4, 4),
    ]
    results = list(operations.measure(True, 1))
    assert all(result.get("value", 1) > 0 for result in results)


def test_metrics():
    results = metrics.measure(True, 1)
    assert any("seconds" in result for result in results)


@pytest.mark.parametrize("name", ["paper", "midband"])
def test_plain_fft2_version_is_the_same_loss(name):
    p, m = loss.masks(2, 16, 3)
    plain = {
        "paper": {"band": None, "per_sample": True},
        "midband": {"band": loss.soft_band(13.0, 1.0), "per_sample": False},
    }[name]
    np.testing.assert_allclose(loss.SPECTRAL[name](p, m), loss.with_fft2(p, m, **plain), rtol=1e-4)


def test_work_of_a_network_of_one_level():
    work, traffic = scaling.unet_work((8,), 10)
    assert work == 100 * 9 * (1 * 8 + 8 * 8)
    assert traffic == 2 * 100 * (1 + 8 + 8 + 8)
