"""Predictions for whole cases at their original size."""

import functools
import itertools
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from spectral_jax.data.augment import to_unit_range
from spectral_jax.data.sources import fit_patch, resize_image
from spectral_jax.models import compiler_options
from spectral_jax.training.config import ConfigError
from spectral_jax.training.run import TrainedModel


class Predictor:
    """Applies a trained network to cases, a batch of slices, tiles or patches at a time."""

    def __init__(
        self,
        trained: TrainedModel,
        batch_size: int = 8,
        *,
        flips: bool = False,
        tiles: bool = False,
    ):
        """Takes a trained network.

        Args:
          trained: the network.
          batch_size: how many slices or patches are computed at once.
          flips: average over each image and its mirror images.
          tiles: cut pictures that are larger than the training size into overlapping tiles of
            that size, in the place of shrinking them.

        Raises:
          ConfigError: for flips, if training did without; for tiles, if it was on patches.
        """
        config = trained.config
        if flips and not config.augment.flip:
            raise ConfigError(
                "mirror images: this network was trained with config.augment.flip=False and does "
                "not know them"
            )
        if tiles and config.data.patch_size:
            raise ConfigError("tiles: a network of patches slides over its volumes anyway")
        self._input_size = config.data.example_size
        self._slice_size = (config.data.image_size, config.data.image_size)
        self._tiles = tiles
        self._classes = len(trained.data.classes)
        self._batch_size = batch_size
        self._variables = trained.variables
        # height and width, and depth where there is one
        axes = range(1, 1 + len(self._input_size)) if flips else ()
        self._flips = [some for n in range(len(axes) + 1) for some in combinations(axes, n)]
        self._network = jax.jit(
            functools.partial(apply_network, trained.model), compiler_options=compiler_options()
        )

    def slices(
        self, images: Iterable[np.ndarray]
    ) -> Iterator[Float[np.ndarray, "height width classes"]]:
        """Class probabilities of each slice of each case in turn, at the original size.

        A network of slices sees them at the training size, and its probabilities are interpolated
        linearly; slices of several cases share a batch. A network of patches slides over a volume,
        and what memory holds of it is as deep as a patch.

        Args:
          images: of each case `[depth, height, width, channels]`, uint8 or uint16.
        """
        if len(self._input_size) == 3:
            for image in images:
                yield from self._slide(image, self._input_size)
        elif self._tiles:
            for image in images:
                if max(image.shape[1:3]) > self._input_size[0]:
                    yield from self._slide(image, (1, *self._input_size))
                else:
                    yield from self._resized([image])
        else:
            yield from self._resized(images)

    def labels(self, image: np.ndarray) -> UInt8[np.ndarray, "depth height width"]:
        """The most probable class of each voxel of a case `[depth, height, width, channels]`."""
        return np.stack([p.argmax(-1).astype(np.uint8) for p in self.slices([image])])

    def _resized(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        inputs = (
            (of_slice.shape[:2], resize_image(of_slice, self._slice_size))
            for image in images
            for of_slice in image
        )
        # the type says what the highest value is, so a batch has one
        for _, alike in itertools.groupby(inputs, key=lambda pair: pair[1].dtype):
            for size, probabilities in self._in_batches(alike):
                yield resize_image(probabilities, size)

    def _in_batches(self, inputs: Iterator[tuple[Any, np.ndarray]]) -> Iterator[tuple]:
        """Puts in the place of each input its probabilities, whatever stands beside it."""
        while part := list(itertools.islice(inputs, self._batch_size)):
            # one compiled shape: the last batch is filled up
            filled = [image for _, image in part] + [part[-1][1]] * (self._batch_size - len(part))
            probabilities = self._average(np.stack(filled))
            yield from ((place, p) for (place, _), p in zip(part, probabilities, strict=False))

    def _average(self, images: np.ndarray) -> np.ndarray:
        mirrored = [
            np.flip(np.asarray(self._network(self._variables, np.flip(images, axes))), axes)
            for axes in self._flips
        ]
        return np.mean(mirrored, axis=0) if len(mirrored) > 1 else mirrored[0]

    def _slide(
        self, image: np.ndarray, size: tuple[int, ...]
    ) -> Iterator[Float[np.ndarray, "height width classes"]]:
        """Blends patches that overlap by half, each weighted towards its middle."""
        shape = image.shape[:3]
        weights = gaussian_window(size)
        # of the slices from `first` on: those above are done, those below not yet begun
        first = 0
        total = np.zeros((size[0], *shape[1:], self._classes), np.float32)
        weight = np.zeros((size[0], *shape[1:], 1), np.float32)
        patches = (
            (start, fit_patch(image, start, size).reshape(*self._input_size, -1))
            for start in window_starts(shape, size)
        )
        for start, of_patch in self._in_batches(patches):
            done = start[0] - first
            if done:
                yield from total[:done] / weight[:done]
                for buffer in (total, weight):
                    buffer[:-done] = buffer[done:]
                    buffer[-done:] = 0
                first = start[0]
            rows, columns = (
                slice(s, min(s + n, whole))
                for s, n, whole in zip(start[1:], size[1:], shape[1:], strict=True)
            )
            inside = np.s_[:, : rows.stop - rows.start, : columns.stop - columns.start]
            total[:, rows, columns] += (weights * of_patch.reshape(*size, -1))[inside]
            weight[:, rows, columns] += weights[inside]
        left = shape[0] - first  # a patch may be deeper than the volume
        yield from total[:left] / weight[:left]


def apply_network(
    model: nn.Module, variables: dict[str, Any], images: Array
) -> Float[Array, "batch *spatial classes"]:
    """Class probabilities of a batch of images: uint8, uint16, or float32 in [0, 1]."""
    logits = model.apply(variables, to_unit_range(images), train=False)
    return jax.nn.softmax(logits, axis=-1)


def window_starts(shape: tuple[int, ...], size: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Where patches start so that they cover a volume and overlap by at least half."""
    axes = []
    for whole, patch in zip(shape, size, strict=True):
        room = max(0, whole - patch)
        count = 1 + -(-room // max(1, patch // 2))
        axes.append(np.linspace(0, room, count).astype(int).tolist())
    yield from itertools.product(*axes)


def gaussian_window(size: tuple[int, ...]) -> Float[np.ndarray, "*size 1"]:
    """Weights of a patch: a Gaussian whose deviation is an eighth of its size, as nnU-Net has."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size]
    window = functools.reduce(np.multiply.outer, axes)
    return np.maximum(window, 1e-3 * window.max()).astype(np.float32)[..., None]
