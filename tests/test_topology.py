"""Steps compiled for TPU slices that are not there, by the TPU's own compiler."""

import importlib.util
import json

import jax
import pytest
import tiny_networks

from spectral_jax.configs import hippocampus_3d, tiny
from spectral_jax.models.packing import MOST
from spectral_jax.training import plan as planning
from spectral_jax.training.config import ConfigError, parse_config
from spectral_jax.training.plan import as_json, describe, estimates, make_plan
from spectral_jax.training.program import count_scalar_look_ups, find_operations
from spectral_jax.training.topology import CHIPS, describe_slices, find_chip

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install -e '.[tpu]'",
)


def small_unet():
    return tiny.get_config()


def small_transunet():
    values = tiny.get_config()
    values.model.name = "transunet"
    values.model.transunet.update(tiny_networks.TRANSUNET)
    return values


def small_unet_3d():
    values = hippocampus_3d.get_config()
    values.data.patch_size = (16, 32, 32)
    values.model.unet.widths = (4, 8)
    return values


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("network", [small_unet, small_transunet, small_unet_3d])
def test_a_step_for_a_slice(network):
    values = network()
    values.model.bfloat16 = True
    values.objective.spectral = "midband"
    plan = make_plan(parse_config(values), 3, 1, describe_slices("v5e:2x2"))
    assert plan.devices == 4
    # sums of gradients, of kernels as they are spread out, and of statistics leave a chip
    assert {collective.kind for collective in plan.collectives} == {"all-reduce"}
    sent = sum(sum(collective.arrays) for collective in plan.collectives)
    assert 4 * plan.parameters <= sent < 4 * MOST**2 * plan.parameters
    assert plan.scalar_look_ups == 0
    found = estimates(plan, CHIPS["v5e"])
    assert found["cycles"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1)
    parts = {"network, forward", "network, backward", "augmentation", "loss", "optimizer"}
    assert parts <= set(found["shares"])
    assert found["shares"].get("other", 0) < 0.2
    assert 0 < plan.memory_bytes < CHIPS["v5e"].memory_bytes
    text = describe(plan, CHIPS["v5e"])
    assert "Estimates of the compiler, not measurements" in text
    assert ".py:" in text
    json.dumps(as_json(plan, CHIPS["v5e"]))


def test_a_step_that_does_not_fit_says_what_to_change():
    config = parse_config(tiny.get_config())
    full = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 82.35G of 15.75G hbm. Exceeded hbm capacity by 66.60G."
    )
    said = str(planning._too_large(full, config))
    assert "batch_size=8 does not fit the memory of a device: 82.35G of 15.75G" in said
    assert "config.train.accumulate=2" in said
    other = jax.errors.JaxRuntimeError("INTERNAL: something else")
    assert planning._too_large(other, config) is other


@needs_libtpu
def test_slices_that_do_not_exist_are_refused():
    with pytest.raises(ConfigError, match=r"v5e:3x5.* libtpu knows no such slice"):
        describe_slices("v5e:3x5")
    assert len(describe_slices("v4:2x2x1")) == 4  # both cores of a chip are one device


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install libtpu"):
        describe_slices("v5e:2x2")


@pytest.mark.parametrize("name", ["v5e", "h100:2x2", "v5e:2x", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="expected one of v4, v5e"):
        find_chip(name)


PROGRAM = """HloModule jit_step

FileNames
1 "/home/me/train.py"
2 "/home/me/spectral_jax/models/unet.py"
3 "/lib/flax/linear.py"

FunctionNames
1 "main"
2 "UNet.__call__"
3 "Conv.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=2 end_column=7}
2 {file_name_id=2 function_name_id=2 line=17 end_line=17 column=1 end_column=3}
3 {file_name_id=3 function_name_id=3 line=16 end_line=16 column=6 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}


%fused (p: f32[8]) -> f32[8] {
  ROOT %g = f32[8]{0} gather(%p, %i), offset_dims={}, slice_sizes={1}, backend_config={"estimated_cycles":"7"}
}

%body (p: f32[4]) -> f32[4] {
  ROOT %twice = f32[4]{0} add(%p, %p), metadata={op_name="jit(step)/transpose(jvp(network))/UNet/x"}, backend_config={"estimated_cycles":"100"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %f = (f32[8]{0:T(8,128)}, bf16[2]{0}) fusion(%a), calls=%fused, metadata={op_name="jit(step)/jvp(network)/UNet/encoder0/Conv_0/conv" stack_frame_id=3}, backend_config={"estimated_cycles":"50"}
  %w = f32[4]{0} while(%f), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %c = f32[8]{0} copy-start(%f)
}
"""  # noqa: E501


def test_operations_are_read_from_a_program():
    fusion, twice, copy = find_operations(PROGRAM)
    assert (fusion.kind, fusion.cycles, fusion.bytes) == ("fusion", 50, 36)
    assert fusion.place == "models/unet.py:17 __call__"
    assert planning.part_of(fusion) == "network, forward"
    assert (twice.cycles, twice.bytes) == (300, 48)  # three times
    assert planning.part_of(twice) == "network, backward"
    assert copy.cycles is None
    assert count_scalar_look_ups(PROGRAM) == 8
    assert find_operations("") == ()
