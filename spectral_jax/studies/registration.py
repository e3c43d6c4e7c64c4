"""What was decided before a study's runs, and whether the runs kept to it.

`NAME.registration.json` beside `NAME.py` says what is asked and how it will be answered. It counts
only if it is older than the runs: each run notes its hash when it starts.
"""

import dataclasses
import datetime
import hashlib
import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

from spectral_jax.files import read_json, write_text
from spectral_jax.studies import statistics

SUFFIX = ".registration.json"
# where a run finds its files does not change what is computed
FREE_KEYS = ("data.root", "data.data_dir", "train.seed")


@dataclasses.dataclass(frozen=True)
class Registration:
    """A registration as it was read.

    Attributes:
      values: of the file.
      sha256: of the file.
      file: where it was read.
    """

    values: Mapping[str, Any]
    sha256: str
    file: pathlib.Path

    def committed(self) -> str | None:
        """When git took in the file as it is, in UTC; None where nothing shows it."""
        commands = (["diff", "--quiet", "HEAD"], ["log", "-1", "--format=%ct"])
        output = ""
        for command in commands:
            try:
                ended = subprocess.run(
                    ["git", *command, "--", self.file.name],
                    cwd=self.file.resolve().parent,
                    capture_output=True,
                    text=True,
                    check=False,
                )
            except OSError:  # no git
                return None
            if ended.returncode:
                return None
            output = ended.stdout.strip()
        if not output:  # never committed
            return None
        time = datetime.datetime.fromtimestamp(int(output), datetime.UTC)
        return time.isoformat(timespec="seconds")


def read_registration(study: pathlib.Path) -> Registration | None:
    """The registration beside a study's file; None if there is none."""
    file = study.with_suffix(SUFFIX)
    if not file.exists():
        return None
    content = file.read_bytes()
    return Registration(json.loads(content), hashlib.sha256(content).hexdigest(), file)


def register(study: pathlib.Path, facts: Mapping[str, Any]) -> Registration:
    """Writes what a study's file says into its registration, beside what people wrote there.

    Args:
      study: its file.
      facts: such as "seeds", "arms" and "config"; see `differences`.

    Raises:
      ValueError: if there is no registration to complete.
    """
    file = study.with_suffix(SUFFIX)
    if not file.exists():
        raise ValueError(
            f"{file}: no such file; write there what is asked (hypotheses, primary, rule, unit, "
            "stopping, exclusions), as in the studies that come along"
        )
    text = json.dumps({**read_json(file, "mend it"), **facts}, indent=2)
    write_text(file, text + "\n")
    registered = read_registration(study)
    assert registered is not None
    return registered


def analysis_facts() -> dict[str, str]:
    """The file that computes every interval, and its hash."""
    file = pathlib.Path(statistics.__file__)
    return {
        "file": "spectral_jax/studies/statistics.py",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def differences(
    registration: Registration,
    arm: str,
    seed: int,
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> list[str]:
    """How a run departs from what was registered, one sentence each.

    Args:
      registration: with "seeds"; "config", shared by the arms; and "arms", what each changes, by
        dotted name.
      arm: the run's.
      seed: the run's.
      config: the run's, resolved, in sections.
      defaults: of a configuration, in sections: a field that came later is as registered if it has
        its default.
    """
    found = []
    if seed not in registration.values["seeds"]:
        found.append(f"seed {seed} is not registered")
    if arm not in registration.values["arms"]:
        return [*found, f"arm {arm} is not registered"]
    expected = _flatten(defaults) | _flatten(registration.values["config"])
    expected |= _flatten(registration.values["arms"][arm])
    actual = _flatten(json.loads(json.dumps(config)))
    for key in sorted(expected.keys() | actual.keys()):
        if key not in FREE_KEYS and expected.get(key) != actual.get(key):
            there, here = expected.get(key), actual.get(key)
            found.append(f"config.{key} is {here!r}, registered as {there!r}")
    return found


def _flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Sections to dotted names; options within a section, which have names of their own, stay."""
    flat: dict[str, Any] = {}
    for section, fields in json.loads(json.dumps(values)).items():
        if isinstance(fields, dict):
            flat |= {f"{section}.{key}": value for key, value in fields.items()}
        else:  # dotted already
            flat[section] = fields
    return flat
