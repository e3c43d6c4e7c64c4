"""Parameters of one network for another of its kind: taken over, fitted by a rule, or left new."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from spectral_jax.models.vit import resize_grid

Part = Literal["all", "encoder"]
PARTS: tuple[Part, ...] = ("all", "encoder")
# by name of the network; paths of parameters and of running statistics
ENCODERS = {
    "unet": r"(encoder\d+|bottleneck)/",
    "transunet": r"(resnet|embedding|encoder)/|position_embedding$",
}
FIRST_CONVOLUTION = "encoder0/Conv_0/kernel"  # of UNet; TransUNet sees three channels always


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A network's variables with those of another one in their place.

    Attributes:
      variables: of the network.
      loaded: paths of what was taken over as it is.
      fitted: paths of what was taken over by a rule, and the rule in words.
      new: paths of what stays as it was.
      unused: paths of the other network's arrays that have no place here.
    """

    variables: dict[str, Any]
    loaded: tuple[str, ...]
    fitted: Mapping[str, str]
    new: tuple[str, ...]
    unused: tuple[str, ...] = ()


def transfer(
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    network: str,
    *,
    part: Part = "all",
    new_head: bool = False,
) -> Transfer:
    """Takes over the variables of a network of the same name and options.

    The first convolution may see other channels: its kernel is averaged over theirs and repeated
    for ours, scaled so that the same image in every channel gives the same features. Position
    embeddings of another image size are interpolated.

    Args:
      theirs: variables to take over, numpy arrays.
      ours: variables to take them over into, as `init` returns them.
      network: its name, a key of `spectral_jax.models.MODELS`.
      part: "encoder" leaves the decoder and the last layer as they are.
      new_head: leaves the last layer as it is, for other classes.

    Raises:
      ValueError: for an array that is missing, or of another shape; all are named.
    """
    there, here = (traverse_util.flatten_dict(dict(tree), sep="/") for tree in (theirs, ours))
    loaded: dict[str, Any] = {}
    fitted: dict[str, str] = {}
    new, missing, misshapen = [], [], []
    for path, leaf in here.items():
        name = path.split("/", 1)[1]  # without "params" or "batch_stats"
        if (part == "encoder" and not re.match(ENCODERS[network], name)) or (
            new_head and name.startswith("head/")
        ):
            new.append(path)
            continue
        if path not in there:
            missing.append(path)
            continue
        array = np.asarray(there[path])
        if array.shape != leaf.shape:
            fit = _fit(name, array, leaf.shape)
            if fit is None:
                misshapen.append(f"{path} is {array.shape} there, {leaf.shape} here")
                continue
            array, fitted[path] = fit
        loaded[path] = array.astype(leaf.dtype)
    unused = tuple(sorted(there.keys() - here.keys()))
    problems = [
        f"{len(found)} {problem}: {', '.join(sorted(found))}"
        for problem, found in (
            ("missing", missing),
            ("of another shape", misshapen),
            ("without a place", unused if part == "all" else ()),
        )
        if found
    ]
    if problems:
        raise ValueError("\n".join(problems))
    return Transfer(
        variables={**ours, **traverse_util.unflatten_dict({**here, **loaded}, sep="/")},
        loaded=tuple(sorted(loaded.keys() - fitted.keys())),
        fitted=fitted,
        new=tuple(sorted(new)),
        unused=unused,
    )


def _fit(name: str, array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """An array in another shape, and the rule; None where there is none."""
    if array.ndim != len(shape):
        return None
    sizes = zip(array.shape, shape, strict=True)
    differ = [axis - len(shape) for axis, (there, here) in enumerate(sizes) if there != here]
    if name == FIRST_CONVOLUTION and differ == [-2]:
        return fit_channels(array, shape[-2])
    if name == "position_embedding" and -1 not in differ:
        before, after = (f"{height} x {width}" for height, width, _ in (array.shape, shape))
        grid = np.asarray(resize_grid(jnp.asarray(array), *shape[:2]))
        return grid, f"grid of {before} interpolated to {after}"
    return None


def fit_channels(kernel: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """A kernel `[*window, inputs, outputs]` for images of other channels, and the rule.

    >>> kernel, rule = fit_channels(np.array([[1.0], [2.0], [3.0]]), 1)
    >>> kernel.tolist(), rule
    ([[6.0]], '3 channels averaged to 1')
    """
    before = kernel.shape[-2]
    mean = kernel.mean(-2, keepdims=True) * (before / channels)
    rule = "repeated" if channels > before else "averaged"
    words = f"{before} channel{'s' * (before > 1)} {rule} to {channels}"
    return np.repeat(mean, channels, axis=-2), words
