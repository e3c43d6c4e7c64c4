"""What the commands share: their flags, and errors of the user's shown as one line."""

import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app, flags, logging

from spectral_jax.training.config import ConfigError
from spectral_jax.training.loop import NonFiniteError, Preempted

# errors that are the user's to mend; anything else is ours and shows its traceback
USER_ERRORS = (ConfigError, ValueError, OSError, NonFiniteError)
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 143  # 128 + SIGTERM, as a program that does not catch it


def define_workdir() -> flags.FlagHolder[str]:
    """The flag --workdir, required."""
    return flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)


def path(flag: flags.FlagHolder[str]) -> pathlib.Path:
    """The folder that a flag names."""
    return pathlib.Path(flag.value).expanduser()


def run(main: Callable[[], None]) -> None:
    """Runs a command: parses flags, keeps compiled programs on disk, shows errors plainly."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --name=value")
        logging.set_verbosity(logging.WARNING)
        _keep_compiled_programs()
        try:
            main()
        except Preempted as stop:
            print(stop, file=sys.stderr)
            sys.exit(EXIT_PREEMPTED)
        except USER_ERRORS as error:
            if logging.level_debug():
                raise
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # from ml_collections, for an unknown key
        message = str(error.args[0]).replace("\n", " ")
        print(f"ConfigError: no such key in the configuration: {message}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _keep_compiled_programs() -> None:
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache / "spectral_jax" / "compiled"))
