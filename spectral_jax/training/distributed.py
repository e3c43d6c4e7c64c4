"""Several processes as one: joining them, what they agree on, what they tell each other.

All of it works with one process too, and does nothing then.
"""

import contextlib
import enum
import importlib.util
import json
import os
import pathlib
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from spectral_jax import lock
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
    # SIGTERM is ours: `StopSignal` agrees on a step; elsewhere it ends the process
    jax.config.update("jax_enable_preemption_service", False)
    waiting: dict[str, Any] = {
        "initialization_timeout": timeout_seconds,
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
    }
    if not any(given):
        if _scheduler():
            jax.distributed.initialize(**waiting, local_device_ids=slurm_gpus(os.environ))
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


def slurm_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that this process sees are its own, under Slurm.

    JAX gives each process the one GPU of its number on the node. That is right for a process a GPU
    alone: one that has a node to itself would leave the others idle.

    Args:
      environment: of the process.

    Returns:
      Their numbers; `[]` for all; None where Slurm says nothing of GPUs, for JAX to choose.

    Raises:
      ConfigError: if the processes of a node cannot share its GPUs evenly.
    """
    on_node = environment.get("SLURM_GPUS_ON_NODE", "")
    if "SLURM_STEP_ID" not in environment or not on_node.isdigit():
        return None
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    gpus = len(visible.split(",")) if visible else int(on_node)
    tasks = _tasks_here(environment)
    if tasks == 1 or gpus < int(on_node):  # a process that Slurm shows its own alone
        return []
    if gpus % tasks:
        raise ConfigError(
            f"Slurm started {tasks} processes for {gpus} GPUs on node "
            f"{environment.get('SLURMD_NODENAME', '')}: they cannot share them evenly; use one "
            "process a node (--ntasks-per-node=1) or one a GPU"
        )
    share = gpus // tasks
    first = int(environment["SLURM_LOCALID"]) * share
    return list(range(first, first + share))


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Processes of the step on this node, from such as "8(x2),4" and the node's number."""
    counts = []
    for part in environment["SLURM_STEP_TASKS_PER_NODE"].split(","):
        count, _, times = part.partition("(x")
        counts += [int(count)] * int(times.rstrip(")") or 1)
    return counts[int(environment.get("SLURM_NODEID", 0))]


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


class Request(enum.IntEnum):
    """What a process asks all of them to do after the same step; of several, they do the last."""

    NOTHING = 0
    SAVE = 1
    INTERRUPT = signal.SIGINT  # 2
    TERMINATE = signal.SIGTERM  # 15

    @property
    def title(self) -> str:
        """What a person calls the signal."""
        return "Ctrl-C" if self == Request.INTERRUPT else "SIGTERM"


class Preempted(Exception):
    """SIGTERM or Ctrl-C came; what has to be kept is saved, and the same command resumes.

    Attributes:
      request: which of them.
    """

    def __init__(self, message: str, request: Request = Request.TERMINATE):
        super().__init__(message)
        self.request = request


class StopSignal:
    """SIGTERM or Ctrl-C to any process asks all of them to stop after the same step.

    The second Ctrl-C means what it did before.
    """

    def __init__(self, mesh: Mesh):
        self._split = split_batch(mesh)
        self._highest = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._asked: jax.Array | None = None

    def agreed(self, save: bool = False) -> Request:
        """What to do now; called by all processes after each step.

        Several processes read here what they sent after the step before, so that nobody waits.

        Args:
          save: whether this process wants the state to be saved.
        """
        mine = max(self._received, Request.SAVE if save else Request.NOTHING)
        if jax.process_count() == 1:
            return mine
        asked = self._asked
        sent = np.full(jax.local_device_count(), mine, np.int32)
        self._asked = self._highest(jax.make_array_from_process_local_data(self._split, sent))
        return Request.NOTHING if asked is None else Request(int(asked))

    def check(self, message: str) -> None:
        """Raises Preempted where all processes agreed to stop; called by all after each step."""
        request = self.agreed()
        if request > Request.SAVE:
            raise Preempted(f"{request.title}: {message}", request)

    def __enter__(self):
        self._received = Request.NOTHING
        self._previous = {
            number: signal.signal(number, self._receive)
            for number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(number) != signal.SIG_IGN  # as with nohup
        }
        return self

    def _receive(self, number, _):
        self._received = max(self._received, Request(number))
        if number == signal.SIGINT:
            # no `print`, which may be interrupted in its middle
            os.write(2, b"\nCtrl-C: stopping after this step; Ctrl-C again ends at once\n")
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def __exit__(self, error, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._received and error is None:  # it came too late to be agreed on
            os.kill(os.getpid(), self._received)


@contextlib.contextmanager
def only_writer(folder: epath.PathLike, *, wait: bool = False) -> Iterator[None]:
    """Makes these processes the only ones that write to a folder: see `lock.only_writer`.

    The first one holds the lock; where it cannot, all of them raise its error.
    """
    with contextlib.ExitStack() as held:
        mine: OSError | None = None
        if is_first():
            try:
                held.enter_context(lock.only_writer(folder, wait=wait))
            except OSError as error:
                mine = error
        reasons = gather(None if mine is None else str(mine))
        if mine is not None:
            raise mine
        if reasons[0]:
            raise lock.LockedError(reasons[0])
        yield
