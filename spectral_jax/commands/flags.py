"""What the commands share: their flags, and errors of the user's shown as one line."""

import difflib
import io
import logging as standard_logging
import os
import pathlib
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

import spectral_jax
from spectral_jax.training import distributed
from spectral_jax.training.config import CHECKPOINTS, ConfigError
from spectral_jax.training.distributed import Preempted
from spectral_jax.training.loop import NonFiniteError

flags.disclaim_key_flags()  # what is defined here belongs to the command that asks for it

# errors the user can fix; anything else is ours and shows its traceback
USER_ERRORS = (ConfigError, ValueError, OSError, NonFiniteError)
AnyPath = TypeVar("AnyPath", pathlib.Path, epath.Path)
EXIT_USER_ERROR = 2
COLUMNS = 100  # of what is printed
CONFIGS = pathlib.Path(spectral_jax.__file__).parent / "configs"
EXAMPLE = pathlib.Path(spectral_jax.__file__).parent / "example"  # a network, and `pictures` for it
HELP = ("--help", "-help", "--helpshort", "-h")
EXIT_LOST_PROCESS = 3
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as programs that do not catch them
EXIT_PREEMPTED = 128 + signal.SIGTERM


def define_workdir(unless: str = "") -> flags.FlagHolder[str]:
    """The flag --workdir, required; not with the flag `unless`."""
    workdir: flags.FlagHolder[str] = flags.DEFINE_string(  # type: ignore[assignment]
        "workdir", None, "Folder of the run.", required=not unless
    )
    if unless:
        flags.register_multi_flags_validator(
            ["workdir", unless],
            lambda values: values["workdir"] is not None or values[unless],
            message=f"Flag --workdir must have a value other than None, but for --{unless}.",
        )
    return workdir


def define_workdirs() -> flags.FlagHolder[list[str]]:
    """The flag --workdir, required, of one run or several."""
    return flags.DEFINE_multi_string(
        "workdir",
        None,
        "Folder of the run. Of several, with commas between or given several times, probabilities "
        "are averaged.",
        required=True,
    )


def define_on() -> flags.FlagHolder[list[str]]:
    """The flag --on."""
    return flags.DEFINE_multi_string(
        "on",
        [],
        "Data sets to score it on, by name, with commas between: those prepared before, or "
        "NAME=FOLDER of raw files. Without, the one it was trained on.",
    )


def define_split() -> flags.FlagHolder[str | None]:
    """The flag --split."""
    return flags.DEFINE_enum(
        "split",
        None,
        ["train", "validation", "test", "fold", "all"],
        "What to score. Without, of the data it was trained on the test split, or what the run's "
        "fold held out; of other data all.",
    )


def define_checkpoint() -> flags.FlagHolder[str]:
    """The flag --checkpoint."""
    return flags.DEFINE_enum("checkpoint", "best", list(CHECKPOINTS), "Which to restore.")


def define_config() -> flags.FlagHolder:
    """The flag --config, with one for each of its values."""
    return config_flags.DEFINE_config_file(
        "config",
        config_file("quickstart"),
        "The configuration: a name, such as quickstart, or a file. Any of its values is an option "
        "too: --config.optim.learning_rate=0.1.",
        lock_config=False,
        accept_new_attributes=True,  # options of readers and models; parse_config knows the rest
    )


def define_threshold() -> flags.FlagHolder[float | None]:
    """The flag --threshold."""
    return flags.DEFINE_float(
        "threshold",
        None,
        "Of networks with sigmoid: the probability above which a pixel is of a class; 0.5 without.",
    )


def define_processes() -> Callable[[], None]:
    """Flags of a run of several processes; returns the function that joins them."""
    address = flags.DEFINE_string(
        "coordinator_address", "", "host:port of process 0. Not needed on TPU, Slurm or Open MPI."
    )
    count = flags.DEFINE_integer("process_count", 0, "How many processes there are.", lower_bound=0)
    index = flags.DEFINE_integer(
        "process_index", -1, "Which of them this is, from 0.", lower_bound=-1
    )
    timeout = flags.DEFINE_integer(
        "join_seconds", 300, "How long processes wait for each other.", lower_bound=1
    )
    return lambda: distributed.start(address.value, count.value, index.value, timeout.value)


def path(flag: flags.FlagHolder[str]) -> epath.Path:
    """The folder that a flag names, here or on object storage (`gs://`, `s3://`, `az://`).

    Raises:
      ConfigError: for a kind of storage that is not known, or whose package is missing.
    """
    return _folder(flag.name, flag.value)


def paths(flag: flags.FlagHolder[list[str]]) -> list[epath.Path]:
    """The folders that a flag names, with commas between; as `path`, and as it raises."""
    folders = []
    for text in flag.value:
        whole = _folder(flag.name, text)  # a name may hold commas
        parts = [text] if whole.exists() else text.split(",")
        folders += [_folder(flag.name, part) for part in parts]
    return folders


def count_together(parts: Sequence[str], is_there: Callable[[str], bool]) -> int:
    """How many of the parts between commas are one name, which may hold commas itself.

    The longest name that is there, or what stands before the first comma.
    """
    lengths = range(len(parts), 0, -1)
    return next((n for n in lengths if is_there(",".join(parts[:n]).strip())), 1)


def _folder(flag: str, text: str) -> epath.Path:
    try:
        folder = epath.Path(text).expanduser()
        folder.exists()  # opens the store
    except KeyError as error:
        raise ConfigError(
            f"--{flag}={text}: expected a folder, or gs://, s3:// or az://"
        ) from error
    except ImportError as error:
        extra = "gcsfs" if text.startswith("gs://") else "s3fs or adlfs"
        raise ConfigError(
            f"--{flag}={text}: {error}; pip install {extra} reads and writes there"
        ) from error
    return folder


def or_example(path: AnyPath, part: str = "") -> AnyPath:
    """The path; of the name "example", where there is no such file, what the package brings."""
    is_meant = str(path) == EXAMPLE.name and not path.exists()
    return type(path)(EXAMPLE / part) if is_meant else path


def config_file(name: str) -> str:
    """The file of a configuration, given by its name or as a path.

    Raises:
      ConfigError: if there is neither.
    """
    known = {file.stem: file for file in CONFIGS.glob("[a-z]*.py")}
    path, *argument = name.split(":", 1)  # what follows a colon goes to the file's `get_config`
    if path in known and not argument:
        return str(known[path])
    if not pathlib.Path(path).is_file():
        near = difflib.get_close_matches(pathlib.Path(path).stem, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--config={name}: no such file, and no configuration of that name{hint}\n"
            f"These come with the package: {', '.join(sorted(known))}"
        )
    return name


def run(main: Callable[[], None]) -> None:
    """Runs a command: parses flags, keeps compiled programs on disk, shows errors plainly."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; options look like --name=value")
        logging.set_verbosity(logging.WARNING)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no UTF-8
        keep_compiled_programs()
        end_at_second_interrupt()
        if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as `start_process` left it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            main()
        except Preempted as stop:
            print(stop, file=sys.stderr)
            sys.exit(128 + stop.request)
        except KeyboardInterrupt:
            _leave("Ctrl-C: ended; complete results are kept, run the same command again",
                   EXIT_INTERRUPTED)  # fmt: skip
        except USER_ERRORS as error:
            if logging.level_debug():
                raise
            _leave(f"{type(error).__name__}: {error}", EXIT_USER_ERROR)
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1:
                raise
            _leave(
                f"process {jax.process_index()}: lost contact with another process; see its output "
                "for the cause, and run the same command again to resume from the last checkpoint\n"
                f"({str(error).splitlines()[0][:300]})",
                EXIT_LOST_PROCESS,
            )

    show_remarks_plainly()
    app.run(guarded, flags_parser=_parse)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    if distributed.is_started():
        # JAX would wait for the others, who wait for this process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def end_at_second_interrupt() -> None:
    """Makes the second Ctrl-C end this process at once, whatever it is doing.

    A handler of Python's would have to wait for compiled code to return, and what it raises may be
    lost in a callback. This thread is told of a signal by the system itself.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch():
        interrupts = 0
        while interrupts < 2:
            interrupts += os.read(reading, 1)[0] == signal.SIGINT
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()


def _parse(argv: list[str]) -> list[str]:
    if any(argument in HELP for argument in argv[1:]):
        print(help_text())
        sys.exit(0)
    try:
        return app.parse_flags_with_usage([*map(_with_config_file, argv)])
    except ConfigError as error:
        print(f"ConfigError: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except (AttributeError, KeyError) as error:  # from ml_collections, for an unknown key
        message = str(error.args[0]).replace("\n", " ")
        print(f"ConfigError: no such key in the configuration: {message}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _with_config_file(argument: str) -> str:
    option = re.fullmatch(r"--?config=(.*)", argument)
    return f"--config={config_file(option[1])}" if option else argument


def help_text() -> str:
    """What a command does, an example, and its options: first those that are required."""
    options = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    required = [option for option in options if _is_required(option)]
    optional = [x for x in options if x not in required]
    text = sys.modules["__main__"].__doc__ or ""
    for title, part in (("Required", required), ("Options", optional)):
        lines = "".join(map(_describe, sorted(part, key=lambda option: option.name)))
        text += f"\n{title}:\n{lines}" if part else ""
    return text.strip("\n")


def _is_required(option: flags.Flag) -> bool:
    """Whether the option's value may not be None, all others being as they are without options."""
    if option.default is not None:
        return False
    for rule in option.validators:
        values = {name: flags.FLAGS[name].default for name in rule.get_flags_names()}
        if not rule.checker(values if len(values) > 1 else None):
            return True
    return False


def _describe(option: flags.Flag) -> str:
    name = f"--[no]{option.name}" if option.boolean else f"--{option.name}"
    values = getattr(option.parser, "enum_values", None)
    default = option.default_as_str
    facts = [f"one of {', '.join(values)}"] if values else []
    if default not in (None, "''", "'false'"):
        facts.append(f"default {default}")
    text = " ".join([option.help, *([f"({'; '.join(facts)})"] if facts else [])])
    return (
        textwrap.fill(text, COLUMNS - 2, initial_indent=f"  {name}  ", subsequent_indent=" " * 6)
        + "\n"
    )


class _Sentences(standard_logging.Formatter):
    """Messages alone, without level, date, thread and line, as wide as what is printed."""

    def format(self, record: standard_logging.LogRecord) -> str:
        return textwrap.fill(
            super().format(record), COLUMNS, subsequent_indent="  ", break_long_words=False
        )


def _is_for_people(record: standard_logging.LogRecord) -> bool:
    """Whether a record is ours, or an error; other packages warn of what is no concern of users."""
    ours = record.name.split(".")[0] == spectral_jax.__name__
    return ours or record.levelno >= standard_logging.ERROR or logging.level_debug()


def show_remarks_plainly() -> None:
    """Shows what we log as sentences, and of other packages errors only; all with --verbosity=1."""
    handler = logging.get_absl_handler().python_handler
    handler.setFormatter(_Sentences("%(message)s"))
    handler.addFilter(_is_for_people)


def keep_compiled_programs() -> None:
    """Keeps what XLA compiles on disk, for this process and later ones."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache / "spectral_jax" / "compiled"))
