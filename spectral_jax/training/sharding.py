"""Where arrays live: one mesh of all devices of all processes.

The batch is split over both axes of the mesh. Parameters, and what the optimiser keeps for each,
are split over `fsdp` and copied along `data`. One device or many hosts: the code is the same.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from spectral_jax.training.config import ConfigError, MeshConfig

AXES = ("data", "fsdp")
MIN_SIZE = 2**16  # smaller arrays are not worth a message


def whole(shape: tuple[int, ...], parts: int) -> P:
    """A copy on every device."""
    return P()


def split_longest(shape: tuple[int, ...], parts: int) -> P:
    """The longest axis that `parts` divides, over `fsdp`; a copy if there is none."""
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    if not fitting or math.prod(shape) < MIN_SIZE:
        return P()
    longest = max(fitting, key=lambda axis: shape[axis])
    return P(*("fsdp" if axis == longest else None for axis in range(len(shape))))


# by the end of an array's name in the state; the first that matches
RULES: tuple[tuple[str, Callable[[tuple[int, ...], int], P]], ...] = (
    (r"(kernel|embedding)$", split_longest),
    (r"", whole),
)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices on the axes `data` and `fsdp`, ordered by process.

    A process holds neighbouring rows of a batch then, so that the order within a batch does not
    depend on how many there are.

    Args:
      config: how many there are along each axis.
      devices: of a topology to compile for; None for those that are there.

    Raises:
      ConfigError: if the numbers do not make up all devices.
    """
    devices = sorted(
        jax.devices() if devices is None else devices,
        key=lambda device: (device.process_index, device.id),
    )
    data = len(devices) // config.fsdp if config.data == -1 else config.data
    if data * config.fsdp != len(devices):
        raise ConfigError(
            f"config.mesh.data={config.data}, config.mesh.fsdp={config.fsdp}: there are "
            f"{len(devices)} devices; choose numbers whose product is that, or data=-1 and an fsdp "
            "that divides it"
        )
    return Mesh(np.array(devices).reshape(data, config.fsdp), AXES)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices."""
    return NamedSharding(mesh, P(AXES))


def split_parameters(tree: Any, mesh: Mesh) -> Any:
    """Shardings by the first of `RULES` that matches each array's name.

    Args:
      tree: of arrays, or of their shapes: parameters, or all of a training state.
      mesh: of `make_mesh`.
    """

    def sharding(path, array):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
        return NamedSharding(mesh, rule(array.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def mesh_of(layout: Any) -> Mesh:
    """The mesh of a tree of shardings."""
    return jax.tree.leaves(layout)[0].mesh


def platform_of(mesh: Mesh) -> str:
    """What its devices are: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def check_batch_size(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ConfigError unless the devices share each part of the batch evenly."""
    if batch_size % (mesh.size * accumulate):
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise ConfigError(
            f"config.train.batch_size={batch_size}{parts} cannot be shared evenly by {mesh.size} "
            f"devices; use a multiple of {mesh.size * accumulate}"
        )


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays of this process's share of a batch."""
    sharding = split_batch(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()
    }
