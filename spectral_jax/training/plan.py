"""What one training step takes, read from the compiled program: memory, operations, messages.

For CPU it is compiled for virtual devices. For a TPU slice that is not there it is compiled by the
TPU's own compiler, whose estimates of time come along: estimates, not measurements.
"""

import collections
import dataclasses
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax.data.labels import Labels
from spectral_jax.training import sharding
from spectral_jax.training.build import build
from spectral_jax.training.config import Config, ConfigError
from spectral_jax.training.objective import make_objective
from spectral_jax.training.program import (
    Collective,
    Operation,
    count_scalar_look_ups,
    find_collectives,
    find_operations,
)
from spectral_jax.training.step import make_train_step
from spectral_jax.training.topology import Chip


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step takes; bytes and operations are of one device.

    Attributes:
      devices: how many there are.
      parameters: how many there are.
      state_bytes: of parameters, their optimiser's state and the rest of the training state.
      memory_bytes: of the state, the batch and all that the step makes, as the compiler places it.
      working_bytes: of what the step makes, alone.
      operations: floating-point operations of a step.
      moved_bytes: read and written by the step's operations.
      compile_seconds: tracing left out.
      collectives: its messages; one inside a loop, as accumulation has, is listed once.
      scalar_look_ups: numbers that are looked up one by one.
      steps: its operations, in the order in which they run.
    """

    devices: int
    parameters: int
    state_bytes: int
    memory_bytes: int
    working_bytes: int
    operations: float
    moved_bytes: float
    compile_seconds: float
    collectives: tuple[Collective, ...]
    scalar_look_ups: int
    steps: tuple[Operation, ...]


def make_plan(
    config: Config, classes: int, channels: int, devices: Sequence[Any] | None = None
) -> Plan:
    """Compiles a step for the mesh of `config`, without data.

    Args:
      config: of the run.
      classes: of its labels.
      channels: of its images.
      devices: to compile for, of `topology.describe_slices`; None for those that are there, which
        may be virtual.

    Raises:
      ConfigError: for devices that cannot share the batch, or whose memory the step exceeds.
    """
    mesh = sharding.make_mesh(config.mesh, devices)
    sharding.check_batch_size(config.train.batch_size, config.train.accumulate, mesh)
    labels = Labels(classes - 1)
    built = build(config, labels, channels, mesh, total_steps=1000)
    equal = [1 / classes] * classes
    objective = make_objective(config, labels, equal)
    step = make_train_step(built.model, config, 1000, built.layout, objective)
    shape = (config.train.batch_size, *config.data.example_size)
    split = sharding.split_batch(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, channels), jnp.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split),
    }
    lowered = step.lower(built.shapes, batch)
    start = time.perf_counter()
    try:
        compiled: Any = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise _too_large(error, config) from error
    compile_seconds = time.perf_counter() - start
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    return Plan(
        devices=mesh.size,
        parameters=sum(array.size for array in jax.tree.leaves(built.shapes.params)),
        state_bytes=bytes_per_device(built.shapes, built.layout),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
        working_bytes=memory.temp_size_in_bytes,
        operations=cost["flops"],
        moved_bytes=cost["bytes accessed"],
        compile_seconds=compile_seconds,
        collectives=find_collectives(text),
        scalar_look_ups=count_scalar_look_ups(text),
        steps=find_operations(text),
    )


def _too_large(error: jax.errors.JaxRuntimeError, config: Config) -> Exception:
    """What to change, if the compiler ran out of the device's memory; else its own error."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        return error
    used = re.search(r"Used (\S+) of (\S+) hbm", message)
    sizes = f"{used[1]} of {used[2]}" if used else message.splitlines()[0]
    return ConfigError(
        f"a step with config.train.batch_size={config.train.batch_size} does not fit the memory of "
        f"a device: {sizes}. Take smaller batches or more devices, go through them in parts "
        f"(config.train.accumulate={2 * config.train.accumulate}), compute in bfloat16 "
        "(config.model.bfloat16), or share the parameters (config.mesh.fsdp)"
    )


def bytes_per_device(tree: Any, layout: Any) -> int:
    """Bytes that one device holds of a tree of arrays, or of their shapes."""

    def of_array(array, sharding):
        return int(np.prod(sharding.shard_shape(array.shape))) * array.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(of_array, tree, layout)))


def part_of(operation: Operation) -> str:
    """The part of the step that an operation belongs to, by the scopes that the step names."""
    if operation.kind.startswith(("all-", "reduce-scatter", "collective-")):
        return "messages"
    for part in ("augmentation", "loss", "optimizer"):
        if re.search(rf"\b{part}\b", operation.scope):
            return part
    if re.search(r"\bnetwork\b", operation.scope):
        return "network, backward" if "transpose(" in operation.scope else "network, forward"
    return "other"


def estimates(plan: Plan, chip: Chip) -> dict[str, Any]:
    """What the compiler expects of a step on such chips, for JSON.

    Returns:
      `cycles` of the operations that have an estimate and `seconds` by the chip's clock; the
      roofline, `compute_seconds`, `memory_seconds` and `message_seconds`, if each were alone and
      at its peak; `share_of_peak` of the operations in those cycles; `shares` of the cycles by
      part; the ten `dearest` places; and what is `without_estimate`, as counts and bytes by kind.
    """
    cycles = sum(step.cycles or 0 for step in plan.steps)
    parts: collections.Counter[str] = collections.Counter()
    places: collections.Counter[tuple[str, str, str]] = collections.Counter()
    silent: dict[str, list[int]] = {}
    for step in plan.steps:
        if step.cycles is None:
            count_and_bytes = silent.setdefault(step.kind, [0, 0])
            count_and_bytes[0] += 1
            count_and_bytes[1] += step.bytes
        else:
            parts[part_of(step)] += step.cycles
            places[part_of(step), _module(step.scope), step.place] += step.cycles
    seconds = cycles / chip.clock_hz
    message_bytes = sum(sum(collective.arrays) for collective in plan.collectives)
    return {
        "cycles": cycles,
        "seconds": seconds,
        "compute_seconds": plan.operations / chip.flops,
        "memory_seconds": plan.moved_bytes / chip.bandwidth,
        # a ring sends and receives all but one part of an array twice
        "message_seconds": 2 * message_bytes / chip.link_bandwidth if plan.devices > 1 else 0.0,
        "share_of_peak": plan.operations / chip.flops / seconds if seconds else 0.0,
        "shares": {part: count / cycles for part, count in parts.most_common()},
        "dearest": [
            {"part": part, "module": module, "place": place, "share": count / cycles}
            for (part, module, place), count in places.most_common(10)
        ],
        "without_estimate": {
            kind: {"count": count, "bytes": size} for kind, (count, size) in sorted(silent.items())
        },
    }


def _module(scope: str) -> str:
    """The modules in an operation's scope, such as "encoder0/Conv_1"."""
    names = re.findall(r"[A-Za-z]\w*(?![\w(])", scope.split("network", 1)[-1])
    return "/".join(names[1:3]) if "network" in scope else ""


def as_json(plan: Plan, chip: Chip | None) -> dict[str, Any]:
    """A plan as JSON takes it, with the compiler's estimates for a chip."""
    values = {
        field.name: getattr(plan, field.name)
        for field in dataclasses.fields(plan)
        if field.name not in ("collectives", "steps")
    }
    kinds = sorted({collective.kind for collective in plan.collectives})
    values["collectives"] = {
        kind: [sum(c.arrays) for c in plan.collectives if c.kind == kind] for kind in kinds
    }
    if chip is not None:
        values["memory_of_chip_bytes"] = chip.memory_bytes
        values["estimates"] = estimates(plan, chip)
    return values


def describe(plan: Plan, chip: Chip | None = None) -> str:
    """A plan in words, a line for each kind of message; with the estimates for a chip."""
    memory = f"{plan.memory_bytes / 2**30:,.2f} GiB"
    if chip is not None:
        memory += f" of {chip.memory_bytes / 2**30:,.1f} GiB"
    lines = [
        f"parameters             {plan.parameters:,}",
        f"memory, each device    {memory}, as the compiler places it",
        f"  of it the state      {plan.state_bytes / 2**20:,.1f} MiB",
        f"  made by the step     {plan.working_bytes / 2**20:,.1f} MiB",
        f"operations, each       {plan.operations / 1e9:,.2f} GFLOP a step",
        f"bytes moved, each      {plan.moved_bytes / 1e9:,.2f} GB a step",
    ]
    for kind in sorted({collective.kind for collective in plan.collectives}):
        of_kind = [c for c in plan.collectives if c.kind == kind]
        total = sum(sum(collective.arrays) for collective in of_kind)
        lines.append(f"{kind:<22} {len(of_kind)} a step, {total / 2**20:,.2f} MiB together")
    if not plan.collectives:
        lines.append("messages               none")
    lines.append(f"compiled in            {plan.compile_seconds:.0f} s")
    if chip is not None:
        lines += ["", *_describe_estimates(plan, chip)]
    return "\n".join(lines)


def _describe_estimates(plan: Plan, chip: Chip) -> list[str]:
    values = estimates(plan, chip)
    kinds = {"computing": "compute", "memory": "memory", "messages": "message"}
    at_best = ", ".join(f"{n} {1e3 * values[f'{k}_seconds']:,.2f} ms" for n, k in kinds.items())
    lines = [
        "Estimates of the compiler, not measurements:",
        f"cycles                 {values['cycles'] / 1e6:,.2f} million, "
        f"{1e3 * values['seconds']:,.2f} ms at {chip.clock_hz / 1e9:.2f} GHz",
        f"share of the peak      {values['share_of_peak']:.0%} of {chip.flops / 1e12:,.0f} TFLOP/s",
        f"each alone, at best    {at_best}",
        f"numbers looked up      {plan.scalar_look_ups:,} one by one",
        "share of the cycles by part:",
    ]
    lines += [f"  {part:<20} {share:6.1%}" for part, share in values["shares"].items()]
    lines.append("the dearest by place:")
    lines += [
        f"  {of['share']:6.1%}  {of['part']:<18} {of['module']:<24} {of['place']}"
        for of in values["dearest"]
    ]
    lines.append("without an estimate:")
    lines += [
        f"  {kind:<20} {of['count']} that write {of['bytes'] / 2**20:,.1f} MiB"
        for kind, of in values["without_estimate"].items()
    ]
    return lines
