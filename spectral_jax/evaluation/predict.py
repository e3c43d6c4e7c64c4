"""Predictions for whole cases at their original size."""

from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Float, UInt8

from spectral_jax.data.augment import to_unit_range
from spectral_jax.data.sources import resize_image
from spectral_jax.training.run import TrainedModel


class Predictor:
    """Applies a trained network, slice by slice, a batch at a time."""

    def __init__(self, trained: TrainedModel, batch_size: int = 8):
        """Takes a trained network; `batch_size` slices are computed at once."""
        size = trained.config.data.image_size
        self._size = (size, size)
        self._batch_size = batch_size
        self._variables = trained.variables

        def probabilities(variables, images):
            logits = trained.model.apply(variables, to_unit_range(images), train=False)
            return jax.nn.softmax(logits, axis=-1)

        self._probabilities = jax.jit(probabilities)

    def slice_probabilities(
        self, image: np.ndarray
    ) -> Iterator[Float[np.ndarray, "height width classes"]]:
        """Class probabilities of each slice in turn, at the original size.

        The network sees slices of the training size; its probabilities are interpolated linearly.

        Args:
          image: `[depth, height, width, channels]`, uint8 or uint16.
        """
        original = image.shape[1:3]
        for first in range(0, len(image), self._batch_size):
            part = [resize_image(x, self._size) for x in image[first : first + self._batch_size]]
            # one compiled shape: the last batch is filled up
            filled = np.stack(part + [part[-1]] * (self._batch_size - len(part)))
            for of_slice in np.asarray(self._probabilities(self._variables, filled))[: len(part)]:
                yield resize_image(of_slice, original)

    def labels(self, image: np.ndarray) -> UInt8[np.ndarray, "depth height width"]:
        """The most probable class of each voxel; takes what `slice_probabilities` does."""
        return np.stack([p.argmax(-1).astype(np.uint8) for p in self.slice_probabilities(image)])
