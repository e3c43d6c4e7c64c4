"""Memory of a CPU process by mimalloc, which keeps it, instead of by the C library.

XLA's CPU client allocates what a step needs anew in each step. The C library gives such blocks
back to the system, which hands them out again page by page, zeroed: a quarter of a step's time.

In a script of your own, before anything imports jax:

    from spectral_jax import allocator
    allocator.restart()
"""

import functools
import os
import pathlib
import sys

SWITCH = "SPECTRAL_JAX_ALLOCATOR"
LIBRARY = "cmeel.prefix/lib/libmimalloc.so"
SETTINGS = {
    "MIMALLOC_ALLOW_LARGE_OS_PAGES": "1",
    "MIMALLOC_PURGE_DELAY": "-1",  # memory is kept, never given back
}
ACCELERATORS = ("nvidia[0-9]*", "kfd", "accel[0-9]*", "vfio/[0-9]*")  # devices of GPUs and TPUs


def restart() -> None:
    """Starts the running program once more, in the same process, under mimalloc.

    Does nothing where that is not wanted or not possible: see `environment`. Nor in an interactive
    session or a notebook, nor once jax is there.

    `SPECTRAL_JAX_ALLOCATOR=system` switches it off.
    """
    interactive = hasattr(sys, "ps1") or "IPython" in sys.modules or "ipykernel" in sys.modules
    if interactive or "jax" in sys.modules or not sys.executable:
        return
    added = environment()
    if added:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added)


def environment() -> dict[str, str]:
    """Variables under which a new process uses mimalloc; empty where it is not to be used.

    It is used on Linux, where the package `cmeel-mimalloc` is installed, unless the machine has an
    accelerator that the process may use, `LD_PRELOAD` is set, or `SPECTRAL_JAX_ALLOCATOR=system`.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    on_cpu = platforms == "cpu" if platforms else not has_accelerator()
    library = _library()
    if (
        sys.platform != "linux"
        or os.environ.get(SWITCH) == "system"
        or os.environ.get("LD_PRELOAD")
        or not on_cpu
        or library is None
    ):
        return {}
    return {"LD_PRELOAD": str(library)} | {k: os.environ.get(k, v) for k, v in SETTINGS.items()}


@functools.cache
def name() -> str:
    """The allocator of this process, "mimalloc", "jemalloc", "tcmalloc" or "system"."""
    try:
        mapped = pathlib.Path("/proc/self/maps").read_text()
    except OSError:
        return "system"
    return next((x for x in ("mimalloc", "jemalloc", "tcmalloc") if f"lib{x}" in mapped), "system")


def _library() -> pathlib.Path | None:
    files = (pathlib.Path(folder, LIBRARY) for folder in sys.path if folder)
    return next((file for file in files if file.exists()), None)


def has_accelerator() -> bool:
    """Whether the machine has a device file of a GPU or TPU; known without jax."""
    devices = pathlib.Path("/dev")
    return any(next(devices.glob(pattern), None) for pattern in ACCELERATORS)
