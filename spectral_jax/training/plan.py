"""What one training step takes, read from the compiled program: memory, operations, messages."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_jax.data.labels import Labels
from spectral_jax.training import run, sharding
from spectral_jax.training.config import Config
from spectral_jax.training.objective import make_objective
from spectral_jax.training.step import make_train_step

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A message between all devices.

    Attributes:
      kind: such as "all-reduce".
      arrays: bytes of each array that it brings to a device.
    """

    kind: str
    arrays: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one step takes; bytes and operations are of one device.

    Attributes:
      parameters: how many there are.
      state_bytes: of parameters, their optimiser's state and the rest of the training state.
      working_bytes: of what the step makes and gives back, as XLA's CPU compiler places it.
      operations: floating-point operations of a step.
      collectives: its messages; one inside a loop, as accumulation has, is listed once.
    """

    parameters: int
    state_bytes: int
    working_bytes: int
    operations: float
    collectives: tuple[Collective, ...]


def make_plan(config: Config, classes: int, channels: int) -> Plan:
    """Compiles a step for the mesh of `config`, on devices that may be virtual, without data."""
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch_size(config.train.batch_size, config.train.accumulate, mesh)
    sigmoid = config.model.activation_for(overlapping=False) == "sigmoid"
    model = run.make_model(config, classes - 1 if sigmoid else classes)
    make_state = run.state_maker(config, model, channels, total_steps=1000)
    state = jax.eval_shape(make_state, jax.random.key(0))
    layout = sharding.split_parameters(state, mesh)
    equal = [1 / classes] * classes
    objective = make_objective(config, Labels(classes - 1), equal)
    step = make_train_step(model, config, 1000, layout, objective)
    shape = (config.train.batch_size, *config.data.example_size)
    split = sharding.split_batch(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((*shape, channels), jnp.uint8, sharding=split),
        "label": jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=split),
    }
    compiled: Any = step.lower(state, batch).compile()
    return Plan(
        parameters=sum(array.size for array in jax.tree.leaves(state.params)),
        state_bytes=bytes_per_device(state, layout),
        working_bytes=compiled.memory_analysis().temp_size_in_bytes,
        operations=compiled.cost_analysis()["flops"],
        collectives=find_collectives(compiled.as_text()),
    )


def bytes_per_device(tree: Any, layout: Any) -> int:
    """Bytes that one device holds of a tree of arrays, or of their shapes."""

    def of_array(array, sharding):
        return int(np.prod(sharding.shard_shape(array.shape))) * array.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(of_array, tree, layout)))


def find_collectives(program: str) -> tuple[Collective, ...]:
    """The messages in the text of a compiled program."""
    return tuple(
        Collective(kind=match[2], arrays=tuple(_bytes(*array) for array in ARRAY.findall(match[1])))
        for match in COLLECTIVE.finditer(program)
    )


def _bytes(kind: str, bits: str, shape: str) -> int:
    size = int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
    return size * (1 if kind == "pred" else int(bits) // 8)


def describe(plan: Plan) -> str:
    """A plan in words, a line for each kind of message."""
    lines = [
        f"parameters             {plan.parameters:,}",
        f"state, each device     {plan.state_bytes / 2**20:,.1f} MiB",
        f"working, each device   {plan.working_bytes / 2**20:,.1f} MiB, by XLA for CPU",
        f"operations, each      {plan.operations / 1e9:,.2f} GFLOP a step",
    ]
    for kind in sorted({collective.kind for collective in plan.collectives}):
        of_kind = [c for c in plan.collectives if c.kind == kind]
        total = sum(sum(collective.arrays) for collective in of_kind)
        lines.append(f"{kind:<22} {len(of_kind)} a step, {total / 2**20:,.2f} MiB together")
    if not plan.collectives:
        lines.append("messages               none")
    return "\n".join(lines)
