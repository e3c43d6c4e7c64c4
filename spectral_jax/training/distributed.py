"""Several processes as one: joining them, what they agree on, what they tell each other.

All of it works with one process too, and does nothing then.
"""

import importlib.util
import json
import os
import pathlib
import signal
import socket
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from spectral_jax.training.config import ConfigError
from spectral_jax.training.sharding import replicated, split_batch

HEARTBEAT_SECONDS = 60  # silence after which a process counts as dead, and the others stop


def start(
    coordinator_address: str = "",
    process_count: int = 0,
    process_index: int = -1,
    timeout_seconds: int = 300,
) -> None:
    """Joins the other processes of the run, before anything else asks for devices.

    With an address, as told; else what Slurm, Open MPI or a TPU machine says of itself; else this
    is the only process.

    Args:
      coordinator_address: `host:port` of the process 0, where it listens.
      process_count: how many processes there are.
      process_index: of this one, from 0.
      timeout_seconds: how long to wait for the others.

    Raises:
      ConfigError: for numbers that do not fit each other.
      ConnectionError: if the coordinator does not answer in time.
    """
    given = (bool(coordinator_address), process_count > 0, process_index >= 0)
    # SIGTERM is ours: `StopSignal` agrees on a step, and outside of training it ends the process
    jax.config.update("jax_enable_preemption_service", False)
    waiting: dict[str, Any] = {
        "initialization_timeout": timeout_seconds,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
    }
    if not any(given):
        if _scheduler():
            jax.distributed.initialize(**waiting)
        return
    host, _, port = coordinator_address.rpartition(":")
    if not all(given) or not host or not port.isdigit() or process_index >= process_count:
        raise ConfigError(
            f"coordinator_address={coordinator_address!r}, process_count={process_count}, "
            f"process_index={process_index}: expected all three, as host:port, a number from 1 and "
            "an index below it; or none, under a scheduler"
        )
    if process_index > 0:
        _wait_for(host, int(port), timeout_seconds)
    jax.distributed.initialize(coordinator_address, process_count, process_index, **waiting)


def _scheduler() -> bool:
    """Whether a scheduler started this process as one of several, or on a TPU machine."""
    sizes = (os.environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    in_step = "SLURM_STEP_ID" in os.environ or "OMPI_COMM_WORLD_SIZE" in os.environ
    if in_step and any(int(size) > 1 for size in sizes):
        return True
    tpu = any(pathlib.Path("/dev").glob("accel*")) or pathlib.Path("/dev/vfio").is_dir()
    return tpu and importlib.util.find_spec("libtpu") is not None


def _wait_for(host: str, port: int, timeout_seconds: int) -> None:
    """Waits until something listens; JAX itself would end the process without a word of ours."""
    end = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise ConnectionError(
                    f"no coordinator at {host}:{port} after {timeout_seconds} s ({error}); is "
                    "process 0 running, and does a firewall let this port through?"
                ) from None
        time.sleep(0.2)


def is_started() -> bool:
    """Whether this process joined others."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """What each process has, by process, on all of them.

    Args:
      value: anything that JSON takes; NaN passes too.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(text)))
    texts = multihost_utils.process_allgather(np.pad(text, (0, max(sizes) - len(text))))
    return [
        json.loads(bytes(text[:size]).decode()) for text, size in zip(texts, sizes, strict=True)
    ]


class Preempted(Exception):
    """SIGTERM came; what has to be kept is saved and the same command goes on from here."""


class StopSignal:
    """SIGTERM to any process asks all of them to stop after the same step."""

    def __init__(self, mesh: Mesh):
        self._split = split_batch(mesh)
        self._any = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._asked: jax.Array | None = None

    def reached(self) -> bool:
        """Whether to stop now; called by all processes after each step.

        Several processes read here what they sent after the step before, so that nobody waits.
        """
        if jax.process_count() == 1:
            return self._received
        asked = self._asked
        mine = np.full(jax.local_device_count(), self._received)
        self._asked = self._any(jax.make_array_from_process_local_data(self._split, mine))
        return asked is not None and bool(asked)

    def __enter__(self):
        self._received = False
        self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def _receive(self, *_):
        self._received = True

    def __exit__(self, error, *_):
        signal.signal(signal.SIGTERM, self._previous)
        if self._received and error is None:  # it came too late to be agreed on
            os.kill(os.getpid(), signal.SIGTERM)
