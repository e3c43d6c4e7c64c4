"""Parameters and batches over the mesh, and what the compiled step sends between devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.configs import kvasir_transunet, kvasir_unet, tiny
from spectral_jax.data.labels import Labels
from spectral_jax.losses.harmonized import SPECTRAL
from spectral_jax.training import sharding
from spectral_jax.training.build import build
from spectral_jax.training.config import ConfigError, MeshConfig, parse_config
from spectral_jax.training.objective import make_objective
from spectral_jax.training.plan import bytes_per_device, make_plan
from spectral_jax.training.program import find_collectives
from spectral_jax.training.step import make_train_step


def make_config(**changes):
    """The smallest configuration, with `section__key=value` changed."""
    values = tiny.get_config()
    values.data.image_size = 32
    values.train.batch_size = 16
    # Adam's first steps are signs of gradients: they make much of the last bit of a small one
    values.optim.name = "sgd"
    values.optim.learning_rate = 0.1
    with values.unlocked():
        for name, value in changes.items():
            section, key = name.split("__")
            values[section][key] = value
    return parse_config(values)


def run_steps(config, count=3, dtype=jnp.float32):
    """The state and the losses after a few steps on made-up pictures, all from the same start."""
    mesh = sharding.make_mesh(config.mesh)
    built = build(config, Labels(2), 1, mesh, total_steps=count)
    model, layout = built.model.clone(dtype=dtype), built.layout

    def make_state(key):
        return jax.tree.map(
            lambda x: x.astype(dtype) if x.dtype == jnp.float32 else x, built.make_state(key)
        )

    step = make_train_step(model, config, count, layout, make_objective(config, Labels(2)))
    # drawn on one device: a sharded draw may differ in the last bit
    state = jax.device_put(jax.jit(make_state)(jax.random.key(0)), layout)
    rng = np.random.default_rng(0)
    losses = []
    size = config.data.image_size
    for _ in range(count):
        labels = rng.integers(0, 3, (16, size, size)).astype(np.uint8)
        noise = rng.integers(0, 40, (16, size, size, 1))
        images = (labels[..., None] * 80 + noise).astype(np.uint8)
        batch = sharding.place_batch({"image": images, "label": labels}, mesh)
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("spectral", [*SPECTRAL, "none"])
def test_only_sums_leave_a_device(spectral):
    config = make_config(objective__spectral=spectral)
    plan = make_plan(config, 3, 1)
    assert {collective.kind for collective in plan.collectives} == {"all-reduce"}
    arrays = [size for collective in plan.collectives for size in collective.arrays]
    # gradients, the statistics of batch normalisation (there and back), and a few scalars
    gradients = 4 * plan.parameters
    statistics = 4 * 2 * 2 * sum(2 * width for width in (4, 8, 4))
    scalars = 64
    assert gradients <= sum(arrays) <= gradients + statistics + 4 * scalars


def test_only_parameters_come_together_when_they_are_split():
    widths = (64, 128)
    config = make_config(model__unet={"widths": widths}, mesh__fsdp=4)
    plan = make_plan(config, 3, 1)
    gathered = [s for c in plan.collectives if c.kind == "all-gather" for s in c.arrays]
    kernels = [4 * 9 * a * b for a, b in ((64, 128), (128, 128), (128, 64))]
    assert sorted(gathered) == sorted(kernels)
    assert {c.kind for c in plan.collectives} <= {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.parametrize("configuration", [kvasir_unet, kvasir_transunet])
def test_four_devices_hold_a_quarter_each(configuration):
    values = configuration.get_config()
    values.optim.ema_decay = 0.99
    config = parse_config(values)
    meshes = [sharding.make_mesh(MeshConfig(fsdp=fsdp)) for fsdp in (4, 1)]
    both = [build(config, Labels(1), 3, mesh) for mesh in meshes]
    for part in ("params", "opt_state", "ema_params"):
        of = [bytes_per_device(getattr(x.shapes, part), getattr(x.layout, part)) for x in both]
        assert of[0] / of[1] == pytest.approx(0.25, abs=0.01)


def test_splitting_parameters_changes_no_number(monkeypatch):
    # float64, where three steps amplify the order of sums to 1e-14 only: in float32 the steps drift
    # apart by what the processor rounds, and hide that a gradient gets lost
    whole = make_config(model__unet={"widths": (32, 64)}, data__image_size=8)
    monkeypatch.setattr(sharding, "MIN_SIZE", 3 * 3 * 64 * 64)
    split = dataclasses.replace(whole, mesh=MeshConfig(data=2, fsdp=4))
    with jax.enable_x64(True):
        (state, losses), (split_state, split_losses) = (
            run_steps(config, dtype=jnp.float64) for config in (whole, split)
        )
    np.testing.assert_allclose(split_losses, losses, rtol=1e-12)
    for one, other in zip(*(jax.tree.leaves(x.params) for x in (split_state, state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12)
    kernel = max(jax.tree.leaves(split_state.params), key=lambda array: array.size)
    assert kernel.addressable_data(0).size == kernel.size // 4


@pytest.mark.parametrize(("spatial", "spectral"), [("dice_ce", "midband"), ("dice", "paper")])
def test_accumulated_steps_are_those_of_the_whole_batch(spatial, spectral):
    config = make_config(
        model__unet={"widths": (4, 8), "norm": "group"},
        objective__spatial=spatial,
        objective__spectral=spectral,
        objective__ramp=0.0,
    )
    in_parts = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=2))
    states, losses = zip(*(run_steps(c, count=1) for c in (config, in_parts)), strict=True)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    # ties of max pooling and kinks of ReLU may fall the other way by the last bit
    for ours, theirs in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    losses = [run_steps(c, count=2)[1] for c in (config, in_parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_misfits_are_named():
    with pytest.raises(ConfigError, match=r"mesh\.fsdp=3: there are 8 devices"):
        sharding.make_mesh(MeshConfig(fsdp=3))
    with pytest.raises(ConfigError, match="expected at least 1, or -1"):
        MeshConfig(data=0)
    mesh = sharding.make_mesh(MeshConfig(fsdp=2))
    with pytest.raises(ConfigError, match=r"batch_size=24 in 2 parts .* a multiple of 16"):
        sharding.check_batch_size(24, 2, mesh)


def test_messages_are_read_from_a_program():
    text = """
      %a = (f32[3,4]{1,0}, bf16[2]{0}) all-reduce(%x, %y), channel_id=1
      %b = f32[] add(%a, %a)
      ROOT %c = pred[8]{0} all-gather(%b), dimensions={0}
    """
    found = find_collectives(text)
    assert [(c.kind, c.arrays) for c in found] == [("all-reduce", (48, 4)), ("all-gather", (8,))]
    assert find_collectives(jax.jit(jnp.sin).lower(1.0).compile().as_text()) == ()
