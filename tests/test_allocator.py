"""Under which allocator a process runs, read from what it has mapped."""

import os
import subprocess
import sys

import pytest

from spectral_jax import allocator

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or allocator._library() is None,
    reason="mimalloc is used on Linux, where cmeel-mimalloc is installed",
)
# prints at the end of the process, which `exec` does not begin anew
REPORT = """
import atexit, os, pathlib, sys
maps = pathlib.Path("/proc/self/maps")
atexit.register(lambda: print("mimalloc" in maps.read_text(), os.getpid(), sys.argv[1:]))
"""


@pytest.fixture
def run(tmp_path):
    """Runs Python in a fresh process, without the suite's own settings; returns what it printed."""
    (tmp_path / "sitecustomize.py").write_text(REPORT)
    inherited = {
        k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", *allocator.SETTINGS)
    }

    def run(*arguments, **variables):
        folders = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env=inherited | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": folders} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        under_mimalloc, pid, *rest = output.splitlines()[-1].split(maxsplit=2)
        assert int(pid) == process.pid  # signals and exit codes stay the command's own
        return under_mimalloc == "True", rest[0].strip()

    return run


COMMAND = ("-W", "ignore", "-m", "experiments.configs.tiny", "--a b", "c")


def test_a_command_restarts_itself_under_mimalloc(run):
    assert run(*COMMAND) == (True, "['--a b', 'c']")
    assert run("-m", "spectral_jax", "--version") == (True, "['--version']")


@pytest.mark.parametrize(
    "variables",
    [
        {"SPECTRAL_JAX_ALLOCATOR": "system"},
        {"LD_PRELOAD": "libm.so.6"},  # the user's own choice
        {"JAX_PLATFORMS": "cuda,cpu"},
    ],
)
def test_it_stays_as_it_is(run, variables):
    assert run(*COMMAND, **variables)[0] is False


def test_a_script_of_ones_own(run, tmp_path):
    script = tmp_path / "mine.py"
    script.write_text("from spectral_jax import allocator\nallocator.restart()\nimport jax\n")
    assert run(str(script), "x") == (True, "['x']")
    script.write_text("import jax\nfrom spectral_jax import allocator\nallocator.restart()\n")
    assert run(str(script))[0] is False  # too late


def test_importing_the_commands_restarts_nothing(run):
    assert run("-c", "import experiments, spectral_jax.losses")[0] is False
