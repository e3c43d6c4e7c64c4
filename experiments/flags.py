"""What the commands share: their flags, and errors of the user's shown as one line."""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import NoReturn

import jax
from absl import app, flags, logging

from spectral_jax.training import distributed
from spectral_jax.training.config import ConfigError
from spectral_jax.training.loop import NonFiniteError, Preempted

# errors that are the user's to mend; anything else is ours and shows its traceback
USER_ERRORS = (ConfigError, ValueError, OSError, NonFiniteError)
EXIT_USER_ERROR = 2
EXIT_LOST_PROCESS = 3
EXIT_PREEMPTED = 143  # 128 + SIGTERM, as a program that does not catch it


def define_workdir() -> flags.FlagHolder[str]:
    """The flag --workdir, required."""
    return flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


def define_processes() -> Callable[[], None]:
    """Flags of a run of several processes; returns the function that joins them."""
    address = flags.DEFINE_string(
        "coordinator_address", "", "host:port of process 0. Not needed on TPU, Slurm or Open MPI."
    )
    count = flags.DEFINE_integer("process_count", 0, "How many processes there are.")
    index = flags.DEFINE_integer("process_index", -1, "Which of them this is, from 0.")
    timeout = flags.DEFINE_integer("join_seconds", 300, "How long processes wait for each other.")
    return lambda: distributed.start(address.value, count.value, index.value, timeout.value)


def path(flag: flags.FlagHolder[str]) -> pathlib.Path:
    """The folder that a flag names."""
    return pathlib.Path(flag.value).expanduser()


def run(main: Callable[[], None]) -> None:
    """Runs a command: parses flags, keeps compiled programs on disk, shows errors plainly."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --name=value")
        logging.set_verbosity(logging.WARNING)
        keep_compiled_programs()
        try:
            main()
        except Preempted as stop:
            _leave(str(stop), EXIT_PREEMPTED)
        except USER_ERRORS as error:
            if logging.level_debug():
                raise
            _leave(f"{type(error).__name__}: {error}", EXIT_USER_ERROR)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1:
                raise
            _leave(
                f"process {jax.process_index()}: lost touch with another process, whose own output "
                "says why it ended; the same command goes on from the last checkpoint\n"
                f"({str(error).splitlines()[0][:300]})",
                EXIT_LOST_PROCESS,
            )

    app.run(guarded, flags_parser=_parse)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    if code != EXIT_PREEMPTED and distributed.is_started():
        # JAX would wait for the others, who wait for this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # from ml_collections, for an unknown key
        message = str(error.args[0]).replace("\n", " ")
        print(f"ConfigError: no such key in the configuration: {message}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def keep_compiled_programs() -> None:
    """Keeps what XLA compiles on disk, for this process and later ones."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache / "spectral_jax" / "compiled"))
