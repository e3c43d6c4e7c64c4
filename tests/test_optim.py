"""Schedules and optimisers against the recipes that they are named for."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spectral_jax.training.config import Config, ObjectiveConfig, OptimConfig
from spectral_jax.training.optim import (
    build_optimizer,
    learning_rate_schedule,
    spectral_weight_schedule,
)


def transunet_by_hand(w, gradients, total, rate=0.01, momentum=0.9, decay=1e-4, power=0.9):
    """PyTorch's SGD with L2; the rate of iteration k is set after iteration k - 1."""
    buffer, current = np.zeros_like(w), rate
    for k, gradient in enumerate(gradients):
        buffer = momentum * buffer + gradient + decay * w
        w = w - current * buffer
        current = rate * (1 - k / total) ** power
    return w


def test_sgd_is_transunets_recipe(rng):
    gradients = rng.standard_normal((20, 5))
    params = {"w": jnp.asarray(rng.standard_normal(5), jnp.float32)}
    expected = transunet_by_hand(np.float64(params["w"]), gradients, total=20)
    optimizer = build_optimizer(OptimConfig(), total_steps=20)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-5)


def test_adamw_warms_up_and_decays_kernels_only():
    config = OptimConfig(name="adamw", learning_rate=1.0, warmup=0.1, weight_decay=0.5)
    rate = learning_rate_schedule(config, total_steps=100)
    assert float(rate(0)) == 0
    assert float(rate(10)) == pytest.approx(1)
    assert float(rate(55)) == pytest.approx(0.5, abs=0.01)
    assert float(rate(100)) == pytest.approx(0, abs=1e-6)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = build_optimizer(OptimConfig(name="adamw", warmup=0.0), total_steps=10)
    nothing = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    updates, _ = optimizer.update(nothing, optimizer.init(params), params)
    assert float(jnp.abs(updates["kernel"]).min()) > 0
    assert not np.any(updates["bias"])


def test_gradients_are_clipped():
    params = {"w": jnp.zeros(2)}
    optimizer = build_optimizer(
        OptimConfig(clip_norm=1.0, learning_rate=1.0, weight_decay=0.0), total_steps=10
    )
    updates, _ = optimizer.update({"w": jnp.array([30.0, 40.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.6, -0.8], rtol=1e-6)


def test_spectral_weight_rises_over_the_ramp_and_stays():
    config = Config(objective=ObjectiveConfig(weight=0.3, ramp=0.1))
    weight = spectral_weight_schedule(config, total_steps=100)
    np.testing.assert_allclose([weight(k) for k in (0, 5, 10, 99)], [0, 0.15, 0.3, 0.3], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_restart_repeats_the_learning_rate_and_not_the_ramp(name):
    once, again = (
        Config(optim=OptimConfig(name=name, restarts=restarts)) for restarts in ((), (100,))
    )
    rate, twice = (
        learning_rate_schedule(config.optim, total)(np.arange(total))
        for config, total in ((once, 100), (again, 200))
    )
    np.testing.assert_array_equal(twice, np.concatenate([rate, rate]))
    assert rate[-1] < 0.05 * rate.max()
    weight, longer = (
        spectral_weight_schedule(config, total)(np.arange(100))
        for config, total in ((once, 100), (again, 200))
    )
    np.testing.assert_array_equal(weight, longer)
