"""What a run starts from: its last checkpoint, another run, weights, or random parameters."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax import traverse_util

from spectral_jax.data.sources import DatasetInfo
from spectral_jax.models.pretrained import load_pretrained
from spectral_jax.models.transfer import Transfer, transfer
from spectral_jax.training.build import Built, channel_classes
from spectral_jax.training.checkpoint import Checkpoints
from spectral_jax.training.config import Config, ConfigError
from spectral_jax.training.restore import restore_network
from spectral_jax.training.run import read_config, read_dataset_info
from spectral_jax.training.state import TrainState

Report = dict[str, Any]
"""What was loaded, as JSON holds it."""


def initial_state(
    config: Config, data: DatasetInfo, built: Built, checkpoints: Checkpoints
) -> tuple[TrainState, Report | None]:
    """The last checkpoint; without one, random or pretrained parameters.

    Returns:
      The state; and what was loaded, where parameters are pretrained.

    Raises:
      ConfigError: if the run to start from is another network.
      ValueError: for weights that do not fit.
    """
    restored = checkpoints.restore_last(built.shapes, built.layout)
    if restored is not None:
        return restored, None
    state = built.first_state(jax.random.key(config.train.seed))
    if not config.model.pretrained:
        return state, None
    source = epath.Path(config.model.pretrained).expanduser()
    load = _from_run if source.is_dir() else _from_file
    loaded, origin = load(source, config, data, state.variables)
    variables = loaded.variables
    params = jax.device_put(variables["params"], built.layout.params)
    state = dataclasses.replace(
        state,
        params=params,
        batch_stats=jax.device_put(variables["batch_stats"], built.layout.batch_stats),
        ema_params=None if state.ema_params is None else jax.tree.map(jnp.copy, params),
    )
    facts = dataclasses.asdict(dataclasses.replace(loaded, variables={}))
    del facts["variables"]
    return state, origin | {"part": config.model.pretrained_part} | facts


def _from_run(
    source: epath.Path, config: Config, data: DatasetInfo, variables: dict[str, Any]
) -> tuple[Transfer, Report]:
    theirs, their_data = read_config(source), read_dataset_info(source)
    network, checkpoint = config.model.name, config.model.pretrained_checkpoint
    if theirs.model.name != network:
        raise ConfigError(
            f"config.model.pretrained={config.model.pretrained!r}: the network of that run is "
            f"{theirs.model.name!r}, of this one {network!r}; expected the same"
        )
    _, their_variables, step = restore_network(source, theirs, their_data, checkpoint)
    same_head = channel_names(theirs, their_data) == channel_names(config, data)
    try:
        loaded = transfer(
            their_variables,
            variables,
            network,
            part=config.model.pretrained_part,
            new_head=config.model.skip_head or not same_head,
        )
    except ValueError as error:
        raise ConfigError(
            f"{source} does not fit this network. Nothing was loaded. Its options "
            f"(config.model.{network}) are {dict(theirs.model.options)}, here they are "
            f"{dict(config.model.options)}; only the classes, the channels and the image size may "
            f"differ.\n{error}"
        ) from error
    return loaded, {"from": str(source), "checkpoint": {"name": checkpoint, "step": step}}


def _from_file(
    source: epath.Path, config: Config, _: DatasetInfo, variables: dict[str, Any]
) -> tuple[Transfer, Report]:
    model = config.model
    if model.pretrained_part != "all":
        raise ConfigError(
            f"config.model.pretrained_part={model.pretrained_part!r} is for runs to start from; "
            f"{source} is a file"
        )
    loaded = load_pretrained(model.pretrained, variables, skip_head=model.skip_head)
    before, after = (traverse_util.flatten_dict(dict(v), sep="/") for v in (variables, loaded))
    new = tuple(sorted(path for path in after if after[path] is before[path]))
    return Transfer(loaded, tuple(sorted(after.keys() - set(new))), {}, new), {"from": str(source)}


def channel_names(config: Config, data: DatasetInfo) -> tuple[str, ...]:
    """What each channel of the logits is, and how they are read."""
    activation = config.model.activation_for(data.overlapping)
    return (activation, *channel_classes(activation, data.classes))


def describe(report: Report) -> str:
    """What was loaded, in a few lines."""
    loaded, fitted, new = (report[key] for key in ("loaded", "fitted", "new"))
    origin = report["from"]
    if "checkpoint" in report:
        origin += " ({name} checkpoint, step {step})".format(**report["checkpoint"])
    lines = [f"starting from {origin}: {len(loaded) + len(fitted)} arrays loaded, {len(new)} new"]
    lines += [f"  {path}: {rule}" for path, rule in fitted.items()]
    if new:
        parts = dict.fromkeys(path.split("/")[1] for path in new)
        lines.append(f"  new: {', '.join(parts)}")
    return "\n".join(lines)
