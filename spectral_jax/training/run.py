"""A run's folder: its configuration and versions, and what is built again from them."""

import dataclasses
import hashlib
import json
import pathlib
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh

import spectral_jax
from spectral_jax import allocator
from spectral_jax.data import datasets
from spectral_jax.data.labels import Labels
from spectral_jax.data.sources import DatasetInfo
from spectral_jax.files import read_json, write_json
from spectral_jax.losses.activation import Activation
from spectral_jax.models import MODELS, build_model
from spectral_jax.training import distributed, sharding
from spectral_jax.training.checkpoint import Checkpoints
from spectral_jax.training.config import (
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    parse_config,
)
from spectral_jax.training.optim import build_optimizer
from spectral_jax.training.state import TrainState, create_state

CONFIG_FILE = "config.json"
VERSIONS_FILE = "versions.json"
DATASET_FILE = "dataset.json"
STOPPED_FILE = "stopped.json"
CHANGES_FILE = "changes.json"
RESTORE = "restore it from a copy, or use another --workdir and train again"
# these may change between the starts of a run: they do not change what is computed
FREE_KEYS = (
    *("data.root", "data.data_dir", "mesh.data", "mesh.fsdp"),
    *("train.log_every_steps", "train.save_every_steps", "train.save_every_minutes"),
)
# these too, where the run stopped at numbers that are not finite
REMEDY_KEYS = ("optim.learning_rate", "optim.clip_norm")


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A network with the parameters of a checkpoint.

    Attributes:
      config: of the run.
      data: what the network was trained on.
      model: the module.
      variables: what to apply it with.
      step: of the checkpoint.
    """

    config: Config
    data: DatasetInfo
    model: nn.Module
    variables: dict[str, Any]
    step: int

    @property
    def activation(self) -> Activation:
        """What makes probabilities of its logits."""
        return self.config.model.activation_for(self.data.overlapping)

    @property
    def labels(self) -> Labels:
        """How its predictions are to be read: with "sigmoid", classes may overlap."""
        return Labels(len(self.data.classes) - 1, overlapping=self.activation == "sigmoid")


def check_run(
    config: Config, workdir: epath.Path, data: DatasetInfo, last_step: int | None
) -> None:
    """Checks that a folder is free for a run, or holds this very one.

    A folder without a checkpoint is free, also where a run began in it.

    Args:
      config: of the run.
      workdir: its folder.
      data: what it is trained on now.
      last_step: of its newest checkpoint.

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
    changed = [
        f"  config.{key}: {before!r} there, {now!r} now"
        for key, (before, now) in _changes(config, workdir).items()
        if key not in free
    ]
    if changed:
        raise ConfigError(
            f"{workdir} belongs to a run with another configuration:\n"
            + "\n".join(changed)
            + "\nUse another --workdir, or delete this one"
        )
    check_data(workdir, data)


def check_data(workdir: epath.Path, data: DatasetInfo) -> None:
    """Checks that data are those that a run was trained on, wherever they lie now.

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
    if before.checksums:  # older runs have none
        changed += [
            f"  {split}: other images, labels or cases, or in another order"
            for split in sorted(before.checksums.keys() | data.checksums.keys())
            if before.checksums.get(split) != data.checksums.get(split)
        ]
    if changed:
        raise ConfigError(
            f"{workdir} was trained on other data:\n"
            + "\n".join(changed)
            + "\nBring those back, wherever they lie (config.data.root), or use another --workdir. "
            "Other files of the same kind are scored with spectral-jax evaluate --on=NAME=FOLDER"
        )


def claim_run(config: Config, workdir: epath.Path, data: DatasetInfo, first_step: int) -> None:
    """Writes what a run is into its folder, after its first step; or what changed as it resumes.

    Args:
      config: of the run.
      workdir: its folder.
      data: what it is trained on.
      first_step: where it resumes; 0 for a new run.
    """
    file = workdir / CONFIG_FILE
    if distributed.is_first():
        if first_step == 0 or not (workdir / DATASET_FILE).exists():
            write_json(workdir / DATASET_FILE, dataclasses.asdict(data))
        if first_step == 0 or not (workdir / VERSIONS_FILE).exists():
            write_json(workdir / VERSIONS_FILE, versions())
        changes = _changes(config, workdir) if file.exists() else {}
        remedies = {key: changes[key] for key in REMEDY_KEYS if key in changes}
        if remedies and first_step:
            known = (
                read_json(workdir / CHANGES_FILE, "delete it")["changes"]
                if (workdir / CHANGES_FILE).exists()
                else []
            )
            change = {"step": first_step} | remedies
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
    try:
        return parse_config(read_json(file, RESTORE))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def read_dataset_info(workdir: pathlib.Path) -> DatasetInfo:
    """What a run was trained on; what older runs did not store, the data set's entry says."""
    file = workdir / DATASET_FILE
    values = _tuples(read_json(file, RESTORE))
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


def state_maker(
    config: Config, model: nn.Module, channels: int, total_steps: int
) -> Callable[[jax.Array], TrainState]:
    """The function from a key to a run's first state, for `jax.jit` or `jax.eval_shape`."""
    optimizer = build_optimizer(config.optim, total_steps)
    image_shape = (*config.data.example_size, channels)
    ema = config.optim.ema_decay > 0
    return lambda key: create_state(model, optimizer, key, image_shape, ema=ema)


def state_layout(make_state: Callable[[jax.Array], TrainState], mesh: Mesh) -> TrainState:
    """The shardings of a run's state, as a state."""
    return sharding.split_parameters(jax.eval_shape(make_state, jax.random.key(0)), mesh)


def restore(workdir: epath.Path, checkpoint: str = "best") -> TrainedModel:
    """Loads the network of a run.

    Args:
      workdir: the run's folder.
      checkpoint: "best" (highest validation Dice) or "last".

    Raises:
      ConfigError: if there is no run, or no checkpoint yet.
    """
    config = read_config(workdir)
    data = read_dataset_info(workdir)
    model = make_model(config, channels_out(config, data))
    make_state = state_maker(config, model, data.channels, total_steps=1)
    with Checkpoints(workdir) as checkpoints:
        step = {"best": checkpoints.best_step, "last": checkpoints.last_step}[checkpoint]
        if step is None:
            raise ConfigError(f"{workdir} holds no checkpoint yet; train first")
        like = jax.eval_shape(make_state, jax.random.key(0))
        everywhere = sharding.replicated(sharding.make_mesh(MeshConfig()))
        state = checkpoints.restore(step, like, jax.tree.map(lambda _: everywhere, like))
    # each process predicts on its own
    state = jax.tree.map(lambda array: array.addressable_data(0), state)
    return TrainedModel(config, data, model, state.variables, step)


def versions() -> dict[str, str]:
    """Versions of this package, its revision, and what it ran on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "spectral_jax": spectral_jax.__version__,
        "revision": revision(),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "allocator": allocator.name(),
    }


def revision() -> str:
    """The commit of this package's own repository; of an installed package, what was installed."""
    folder = pathlib.Path(spectral_jax.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    try:
        # installed packages may lie in a folder of somebody else's repository, which ignores them
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=12").strip()
    except (OSError, subprocess.CalledProcessError):
        return _installed_revision()


def _installed_revision() -> str:
    try:
        package = metadata.distribution("spectral_jax")
    except metadata.PackageNotFoundError:
        return "unknown"
    origin = json.loads(package.read_text("direct_url.json") or "{}")
    if "vcs_info" in origin:  # pip install git+https://...
        return origin["vcs_info"]["commit_id"][:12]
    hashes = sorted(
        f"{file} {file.hash.value}"
        for file in package.files or ()
        if file.parts[0] == "spectral_jax" and file.suffix != ".pyc" and file.hash
    )
    digest = hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:12]
    return f"installed files sha256:{digest}" if hashes else "unknown"


def prepare_data(config: DataConfig) -> pathlib.Path:
    """Prepares the data set, if it is not yet, and returns the folder of its records."""
    known = datasets.DATASETS
    if config.name not in known:
        raise ConfigError(f"config.data.name={config.name!r}: choose one of {sorted(known)}")
    options = _tuples(config.options)
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
        options = _tuples(config.options)  # another folder of the same kind is read alike
    data_dir = config.data_dir
    if root or not datasets.DATASETS[name].needs_root:
        return datasets.prepare(datasets.DATASETS[name], root=root, data_dir=data_dir, **options)
    return datasets.find_prepared(name, data_dir, options)


def channels_out(config: Config, data: DatasetInfo) -> int:
    """How many logits a pixel has: with "sigmoid" the background has none."""
    sigmoid = config.model.activation_for(data.overlapping) == "sigmoid"
    return len(data.classes) - 1 if sigmoid else len(data.classes)


def make_model(config: Config, num_classes: int) -> nn.Module:
    """The network that `config` describes."""
    options = _tuples(config.model.options)
    if config.model.bfloat16:
        options["dtype"] = jnp.bfloat16
    module = MODELS.get(config.model.name)
    if module is not None and "image_size" in module.__dataclass_fields__:
        options.setdefault("image_size", config.data.image_size)
    return build_model(config.model.name, num_classes=num_classes, **options)


def _tuples(values: Any) -> dict[str, Any]:
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
