"""The parameters of a run, from its folder, or from one that holds its weights alone."""

import dataclasses
import zipfile
import zlib
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import linen as nn

from spectral_jax.data.sources import DatasetInfo
from spectral_jax.files import write_arrays, write_json
from spectral_jax.training import sharding
from spectral_jax.training.build import Built, build
from spectral_jax.training.checkpoint import Checkpoints
from spectral_jax.training.config import Config, ConfigError, MeshConfig
from spectral_jax.training.run import CONFIG_FILE, DATASET_FILE

WEIGHTS_FILE = "weights.npz"
STEP = "step"  # in it, beside the arrays


def restore_network(
    workdir: epath.Path, config: Config, data: DatasetInfo, checkpoint: str = "best"
) -> tuple[nn.Module, dict[str, Any], int]:
    """Loads the network of a run.

    Args:
      workdir: the run's folder.
      config: of the run.
      data: what it was trained on.
      checkpoint: "best" (highest validation Dice) or "last"; weights alone are of one.

    Returns:
      The module; what to evaluate it with, on a device of each process; the checkpoint's step.

    Raises:
      ConfigError: if there is no checkpoint yet, or for weights that do not fit.
    """
    mesh = sharding.make_mesh(MeshConfig())  # a copy on every device
    built = build(config, data.labels, data.channels, mesh)
    with Checkpoints(workdir) as checkpoints:
        step = {"best": checkpoints.best_step, "last": checkpoints.last_step}[checkpoint]
        if step is None and (workdir / WEIGHTS_FILE).exists():
            return built.model, *_read_weights(workdir / WEIGHTS_FILE, built)
        if step is None:
            raise ConfigError(f"{workdir} holds no checkpoint yet; train first")
        state = checkpoints.restore(step, built.shapes, built.layout)
    # each process predicts on its own
    state = jax.tree.map(lambda array: array.addressable_data(0), state)
    return built.model, state.variables, step


def write_network(
    folder: epath.Path, config: Config, data: DatasetInfo, variables: dict[str, Any], step: int
) -> None:
    """Writes a network into a folder that takes the place of its run's: to predict, or to export.

    Beside `weights.npz` it holds the run's configuration and what it was trained on, without the
    folders of either.
    """
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, root="", data_dir="")
    )
    write_json(folder / CONFIG_FILE, dataclasses.asdict(config))
    write_json(folder / DATASET_FILE, dataclasses.asdict(data))
    arrays = {name: np.asarray(array) for name, array in _by_name(variables).items()}
    write_arrays(folder / WEIGHTS_FILE, {**arrays, STEP: np.asarray(step)})


def _read_weights(file: epath.Path, built: Built) -> tuple[dict[str, Any], int]:
    expected = _by_name(built.shapes.variables)
    try:
        with file.open("rb") as opened, np.load(opened) as arrays:
            found = {name: arrays[name] for name in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{file} is damaged ({error}): copy it again") from error
    step = int(found.pop(STEP, -1))
    wrong = sorted(expected.keys() ^ found.keys()) + [
        name
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    if wrong:
        raise ConfigError(
            f"{file}: {wrong[0]} is not as the configuration beside it says; keep the files of one "
            "network together"
        )
    paths, tree = jax.tree.flatten_with_path(built.shapes.variables)
    leaves = [jax.numpy.asarray(found[_name(path)]) for path, _ in paths]
    return jax.tree.unflatten(tree, leaves), step


def _by_name(variables: Any) -> dict[str, Any]:
    """Arrays by names such as "params/head/kernel"."""
    return {_name(path): array for path, array in jax.tree.leaves_with_path(variables)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
