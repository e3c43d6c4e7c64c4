"""A run's folder: its configuration, its versions and its data set."""

import dataclasses
import json
import logging
import pathlib
from typing import Any

import jax
from etils import epath

from spectral_jax.data import datasets
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.files import read_json, write_json
from spectral_jax.training import distributed
from spectral_jax.training.config import (
    Config,
    ConfigError,
    DataConfig,
    as_keywords,
    parse_config,
)
from spectral_jax.training.optim import count_steps, same_schedules
from spectral_jax.versions import versions

CONFIG_FILE = "config.json"
VERSIONS_FILE = "versions.json"
DATASET_FILE = "dataset.json"
STOPPED_FILE = "stopped.json"
CHANGES_FILE = "changes.json"
PRETRAINED_FILE = "pretrained.json"
UNKNOWN_DATA = (
    "%s is of an older version, which stored no checksums: whether it was trained on %s as that is "
    "prepared now is not known; volumes may be turned otherwise. Train again to be sure"
)
RESTORE = "restore it from a copy, or use another --workdir and train again"
# these may change between the starts of a run: they do not change what it learns
FREE_KEYS = (
    *("data.root", "data.data_dir", "mesh.data", "mesh.fsdp"),
    *("train.log_every_steps", "train.save_every_steps", "train.save_every_minutes"),
    "train.postprocess",
)
# how patches were cut before a run could say it
AS_OLDER_PATCHES = {"foreground": 0.0, "resample": False}
# these too, where the run stopped at numbers that are not finite
REMEDY_KEYS = ("optim.learning_rate", "optim.clip_norm")
# these too, where the steps that were made would have been the same
LENGTH_KEYS = ("train.epochs", "train.steps", "optim.restarts")


def check_run(
    config: Config, workdir: epath.Path, data: DatasetInfo, last_step: int | None, examples: int
) -> None:
    """Checks that a folder is free for a run, or holds this very one.

    A folder without a checkpoint is free, also where a run began in it.

    Args:
      config: of the run.
      workdir: its folder.
      data: what it is trained on now.
      last_step: of its newest checkpoint.
      examples: how many training examples there are.

    Raises:
      ConfigError: if the folder belongs to another configuration, or to other data, or holds
        something else.
    """
    file = workdir / CONFIG_FILE
    if not file.exists():
        if workdir.exists() and any(path.name[0] != "." for path in workdir.iterdir()):
            raise ConfigError(f"{workdir} is not empty and holds no run; use another --workdir")
        return
    if last_step is None:
        return
    free: tuple[str, ...] = FREE_KEYS
    if _stopped_at(workdir) > last_step:
        free += REMEDY_KEYS
    changed = {
        key: f"  config.{key}: {before!r} there, {now!r} now"
        for key, (before, now) in _changes(config, workdir).items()
        if key not in free
    }
    advice = "Use another --workdir, or delete this one"
    if changed and changed.keys() <= set(LENGTH_KEYS):
        before = read_config(workdir)
        steps, longer = (count_steps(of, examples) for of in (before, config))
        if longer >= last_step and same_schedules(before, config, examples, last_step):
            changed = {}
        elif longer > steps:
            restarts = (*before.optim.restarts, steps)
            advice = (
                f"To train it longer, add --config.optim.restarts='{restarts}': its learning rate "
                f"came down over {steps} steps, and starts again from its peak there (a warm "
                f"restart). Or start a new run from it: --config.model.pretrained={workdir}"
            )
    if changed:
        raise ConfigError(
            f"{workdir} belongs to a run with another configuration:\n"
            + "\n".join(changed.values())
            + f"\n{advice}"
        )
    check_data(workdir, data)


def check_data(workdir: epath.Path, data: DatasetInfo, split: str = "all") -> None:
    """Checks that data are those that a run was trained on, wherever they lie now.

    Args:
      workdir: the run's folder.
      data: the data.
      split: which of their splits has to be the same.

    Raises:
      ConfigError: if its records, its classes or its channels are others.
    """
    if not (workdir / DATASET_FILE).exists():
        return
    before = read_dataset_info(workdir)
    changed = [
        f"  {what}: {there!r} there, {now!r} now"
        for what, there, now in (
            ("data set", before.name, data.name),
            ("classes", before.classes, data.classes),
            ("channels", before.channels, data.channels),
        )
        if there != now
    ]
    if before.checksums:
        changed += [
            f"  {name}: other images, labels or cases, or in another order"
            for name in sorted(before.checksums.keys() | data.checksums.keys())
            if split in (name, "all") and before.checksums.get(name) != data.checksums.get(name)
        ]
    elif not changed:
        logging.getLogger(__name__).warning(UNKNOWN_DATA, workdir, data.name)
    if changed:
        raise ConfigError(
            f"{workdir} was trained on other data:\n"
            + "\n".join(changed)
            + "\nBring those back, wherever they lie (config.data.root), or use another --workdir. "
            "Other files of the same kind are scored with spectral-jax evaluate --on=NAME=FOLDER"
        )


def claim_run(
    config: Config,
    workdir: epath.Path,
    data: DatasetInfo,
    first_step: int,
    started_from: dict[str, Any] | None = None,
) -> None:
    """Writes what a run is into its folder, after its first step; or what changed as it resumes.

    Args:
      config: of the run.
      workdir: its folder.
      data: what it is trained on.
      first_step: where it resumes; 0 for a new run.
      started_from: what a new run loaded; None for random parameters.
    """
    file = workdir / CONFIG_FILE
    if distributed.is_first():
        if first_step == 0:
            (workdir / PRETRAINED_FILE).unlink(missing_ok=True)  # of another start
        if started_from:
            write_json(workdir / PRETRAINED_FILE, started_from)
        if first_step == 0 or not (workdir / DATASET_FILE).exists():
            write_json(workdir / DATASET_FILE, dataclasses.asdict(data))
        if first_step == 0 or not (workdir / VERSIONS_FILE).exists():
            write_json(workdir / VERSIONS_FILE, versions())
        changes = _changes(config, workdir) if file.exists() else {}
        noted = {key: changes[key] for key in REMEDY_KEYS + LENGTH_KEYS if key in changes}
        if noted and first_step:
            known = (
                read_json(workdir / CHANGES_FILE, "delete it")["changes"]
                if (workdir / CHANGES_FILE).exists()
                else []
            )
            change = {"step": first_step} | noted
            write_json(workdir / CHANGES_FILE, {"changes": [*known, change]})
        if changes or not file.exists():
            write_json(file, dataclasses.asdict(config))
    distributed.wait_for_all("claimed the run's folder")
    if not file.exists():
        raise ConfigError(
            f"{workdir}: process {jax.process_index()} does not see what process 0 wrote; use a "
            "--workdir on storage that all processes share"
        )


def note_stop(workdir: epath.Path, step: int, reason: str) -> None:
    """Notes that a run stopped at a step, so that it may resume with another learning rate."""
    if distributed.is_first() and (workdir / CONFIG_FILE).exists():
        write_json(workdir / STOPPED_FILE, {"step": step, "reason": reason})


def _stopped_at(workdir: epath.Path) -> int:
    """The step at which a run stopped for numbers that are not finite; -1 if it never did."""
    file = workdir / STOPPED_FILE
    return int(read_json(file, "delete it").get("step", -1)) if file.exists() else -1


def _changes(config: Config, workdir: epath.Path) -> dict[str, tuple[Any, Any]]:
    """Values that differ from those of a run, by dotted name: there, and now."""
    there, now = (
        # through JSON, as the stored values went: tuples become lists
        _flatten(json.loads(json.dumps(dataclasses.asdict(of))))
        for of in (read_config(workdir), config)
    )
    return {
        key: (there.get(key), now.get(key))
        for key in sorted(there.keys() | now.keys())
        if there.get(key) != now.get(key)
    }


def read_config(workdir: epath.Path) -> Config:
    """The configuration of a run.

    Raises:
      ConfigError: if there is no run in the folder.
    """
    file = workdir / CONFIG_FILE
    if not file.exists():
        raise ConfigError(f"{workdir} holds no run: there is no {CONFIG_FILE} in it")
    values = read_json(file, RESTORE)
    data = values.get("data")
    if isinstance(data, dict) and data.get("patch_size"):
        values["data"] = AS_OLDER_PATCHES | data
    try:
        return parse_config(values)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def read_dataset_info(workdir: pathlib.Path) -> DatasetInfo:
    """What a run was trained on; what older runs did not store, the data set's entry says."""
    file = workdir / DATASET_FILE
    values = as_keywords(read_json(file, RESTORE))
    try:
        data = DatasetInfo(**values)
        entry = datasets.DATASETS[data.name]
        texts = [data.modality, *data.classes, *data.colors]
        if not all(isinstance(text, str) for text in texts) or type(data.channels) is not int:
            raise TypeError("a value of another type")
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{file} is damaged ({error!r}): {RESTORE}") from error
    return dataclasses.replace(
        data,
        intensity=data.intensity or entry.intensity,
        licence=data.licence or entry.licence,
        axes=data.axes or entry.axes,
    )


def prepare_data(config: DataConfig) -> pathlib.Path:
    """Prepares the data set, if it is not yet, and returns the folder of its records."""
    known = datasets.DATASETS
    if config.name not in known:
        raise ConfigError(f"config.data.name={config.name!r}: choose one of {sorted(known)}")
    options = as_keywords(config.options)
    if config.fold >= 0:
        options |= {"fold": config.fold, "folds": config.folds}
    return datasets.prepare(
        known[config.name], root=config.root, data_dir=config.data_dir, **options
    )


def partner_data(config: DataConfig, name: str, root: str = "") -> pathlib.Path:
    """The records of a data set to test on, beside the one that a run was trained on.

    Args:
      config: of the run's data.
      name: of the set to test on.
      root: folder of its raw files; "" for the one that was prepared last.
    """
    if name not in datasets.DATASETS:
        raise ConfigError(f"data set {name!r}: choose one of {sorted(datasets.DATASETS)}")
    partner = datasets.DATASETS[config.name].partner(name)
    options = partner.options
    if name == config.name and not options:
        if not root:
            return prepare_data(config)
        options = as_keywords(config.options)  # another folder of the same kind is read alike
    data_dir = config.data_dir
    if root or not datasets.DATASETS[name].needs_root:
        return datasets.prepare(datasets.DATASETS[name], root=root, data_dir=data_dir, **options)
    return datasets.find_prepared(name, data_dir, options)


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
