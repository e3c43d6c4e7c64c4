"""Predictions for whole cases at their original size."""

import functools
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float, UInt8

from spectral_jax.data.augment import to_unit_range
from spectral_jax.data.sources import fit_patch, resize_image
from spectral_jax.training.run import TrainedModel


class Predictor:
    """Applies a trained network to a case, a batch of its slices or patches at a time."""

    def __init__(self, trained: TrainedModel, batch_size: int = 8):
        """Takes a trained network; `batch_size` slices or patches are computed at once."""
        self._image_size = (trained.config.data.image_size,) * 2
        self._patch_size = trained.config.data.patch_size
        self._classes = len(trained.data.classes)
        self._batch_size = batch_size
        self._variables = trained.variables

        def probabilities(variables, images):
            logits = trained.model.apply(variables, to_unit_range(images), train=False)
            return jax.nn.softmax(logits, axis=-1)

        self._probabilities = jax.jit(probabilities)

    def probabilities(
        self, image: np.ndarray
    ) -> Iterator[Float[np.ndarray, "height width classes"]]:
        """Class probabilities of each slice in turn, at the original size.

        A network of slices sees them at the training size, and its probabilities are interpolated
        linearly. A network of patches slides over the volume.

        Args:
          image: `[depth, height, width, channels]`, uint8 or uint16.
        """
        if self._patch_size:
            yield from self._slide(image)
            return
        slices = (resize_image(of_slice, self._image_size) for of_slice in image)
        for of_slice in self._in_batches(slices):
            yield resize_image(of_slice, image.shape[1:3])

    def labels(self, image: np.ndarray) -> UInt8[np.ndarray, "depth height width"]:
        """The most probable class of each voxel; takes what `probabilities` does."""
        return np.stack([p.argmax(-1).astype(np.uint8) for p in self.probabilities(image)])

    def _in_batches(self, images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        while part := list(itertools.islice(images, self._batch_size)):
            # one compiled shape: the last batch is filled up
            filled = np.stack(part + [part[-1]] * (self._batch_size - len(part)))
            yield from np.asarray(self._probabilities(self._variables, filled))[: len(part)]

    def _slide(self, image: np.ndarray) -> Float[np.ndarray, "depth height width classes"]:
        """Blends patches that overlap by half, each weighted towards its middle."""
        shape, size = image.shape[:3], self._patch_size
        weights = gaussian_window(size)
        total = np.zeros((*shape, self._classes), np.float32)
        weight = np.zeros((*shape, 1), np.float32)
        starts = list(window_starts(shape, size))
        patches = (fit_patch(image, start, size) for start in starts)
        for start, of_patch in zip(starts, self._in_batches(patches), strict=True):
            window = tuple(
                slice(s, min(s + n, whole)) for s, n, whole in zip(start, size, shape, strict=True)
            )
            inside = tuple(slice(part.stop - part.start) for part in window)
            total[window] += (weights * of_patch)[inside]
            weight[window] += weights[inside]
        return total / weight


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
