"""TPU slices to compile for, without one: libtpu's compiler, and what a chip can do at best."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from spectral_jax.training.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip can do at best.

    Attributes:
      flops: bfloat16 operations a second.
      memory_bytes: of its HBM.
      bandwidth: of its HBM, in bytes a second.
      link_bandwidth: of all its links to other chips, both directions, in bytes a second.
      clock_hz: cycles a second.
    """

    flops: float
    memory_bytes: float
    bandwidth: float
    link_bandwidth: float
    clock_hz: float


# docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e. The clock is not stated there: it is the peak
# over what the matrix units do in a cycle: 8, 4 and 8 of 128 x 128, and v6e's 4 of 256 x 256
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1.228e12, 300e9, 275e12 / (8 * 2 * 128**2)),
    "v5e": Chip(197e12, 16e9, 0.819e12, 400e9, 197e12 / (4 * 2 * 128**2)),
    "v5p": Chip(459e12, 95e9, 2.765e12, 1200e9, 459e12 / (8 * 2 * 128**2)),
    "v6e": Chip(918e12, 32e9, 1.638e12, 800e9, 918e12 / (4 * 2 * 256**2)),
}


def find_chip(topology: str) -> Chip:
    """The chip that a topology such as "v5e:16x16" is made of.

    Raises:
      ConfigError: for another name.
    """
    match = re.fullmatch(r"(\w+):\d+(x\d+)*", topology)
    if match is None or match[1] not in CHIPS:
        raise ConfigError(
            f"--topology={topology!r}: expected one of {', '.join(CHIPS)} and the chips along each "
            "axis, such as v5e:16x16 or v4:4x4x8"
        )
    return CHIPS[match[1]]


def describe_slices(topology: str, slices: int = 1) -> list[Any]:
    """The devices of TPU slices that need not be there, for a mesh to compile for.

    Args:
      topology: of a slice, such as "v5e:16x16".
      slices: how many of them, joined by the data-centre network.

    Raises:
      ConfigError: for a topology that libtpu does not know, or without libtpu.
    """
    find_chip(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={topology}: the TPU's compiler is not installed; pip install "
            "libtpu: it compiles on any Linux machine"
        )
    # it asks the cloud which machine it is on, else
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(name, value)
    # both cores of a v4 chip as one device, as JAX has them on a machine
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, num_slices=slices, **options
        )
    except (jax.errors.JaxRuntimeError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f"--topology={topology}, {slices} slices: libtpu knows no such slice: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return list(described.devices)
