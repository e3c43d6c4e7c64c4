"""Predictions for whole cases at their original size."""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import combinations
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt

from spectral_jax.data.augment import to_unit_range
from spectral_jax.data.resampling import resample_image, resample_slices, shape_at
from spectral_jax.data.sources import fit_patch, resize_image, resize_rows
from spectral_jax.data.volumes import Spacing
from spectral_jax.inference.postprocess import keep_largest
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.losses.activation import Activation, activate
from spectral_jax.models import compiler_options
from spectral_jax.training.build import channels_out
from spectral_jax.training.config import ConfigError

PATCH_OVERLAP = 1 / 2  # of volumes, as nnU-Net has
TILE_OVERLAP = 1 / 8  # of pictures: 1.3 times their pixels, where a half would be four times
PART_PIXELS = 2**22  # whose probabilities are computed at once
UNKNOWN: Iterable[None] = itertools.repeat(None)  # spacings of cases


class Predictor:
    """Applies a trained network to cases, a batch of slices, tiles or patches at a time.

    Attributes:
      network: compiled, from a batch of images to class probabilities.
    """

    def __init__(
        self,
        trained: TrainedModel,
        batch_size: int = 8,
        *,
        flips: bool = False,
        tiles: bool = False,
        threshold: float | None = None,
    ):
        """Takes a trained network.

        Args:
          trained: the network.
          batch_size: how many slices or patches are computed at once.
          flips: average over each image and its mirror images.
          tiles: cut pictures that are larger than the training size into overlapping tiles of
            that size, instead of shrinking them.
          threshold: of a network with "sigmoid": the probability above which a pixel is of a
            class; 1/2 without it.

        Raises:
          ConfigError: for flips, if training did without; for tiles, if it was on patches; for a
            threshold that is none, or of a softmax.
        """
        config = trained.config
        if flips and not config.augment.flip:
            raise ConfigError(
                "flips=True needs a network trained with flips; this one was trained with "
                "config.augment.flip=False"
            )
        if tiles and config.data.patch_size:
            raise ConfigError(
                "tiles do not apply to patch networks, which already slide a window over volumes"
            )
        self._input_size = config.data.example_size
        self._slice_size = (config.data.image_size, config.data.image_size)
        self._tiles = tiles
        self._patches = bool(config.data.patch_size)
        self._spacing_mm = trained.data.patch_spacing_mm
        self._softmax = trained.activation == "softmax"
        if threshold is not None and (self._softmax or not 0 < threshold < 1):
            raise ConfigError(
                f"threshold={threshold}: "
                + (
                    "the classes of this network exclude each other, and the most probable is taken"
                    if self._softmax
                    else "expected a probability between 0 and 1"
                )
            )
        self.threshold = None if self._softmax else threshold or 0.5
        self._labels = trained.labels
        self._largest = trained.largest
        self.channels = channels_out(config, trained.data.labels)
        self._batch_size = batch_size
        # height and width, and depth where there is one
        axes = range(1, 1 + len(self._input_size)) if flips else ()
        self._flips = [some for n in range(len(axes) + 1) for some in combinations(axes, n)]
        jitted = jax.jit(
            functools.partial(apply_network, trained.model, trained.activation),
            compiler_options=compiler_options(),
        )
        self.network = functools.partial(jitted, trained.variables)

    @property
    def labels_dtype(self) -> np.dtype:
        """Of what `decide` returns."""
        return self._labels.dtype

    @property
    def inputs(self) -> str:
        """What the network sees of a case: "slices", "tiles" or "patches"."""
        if len(self._input_size) == 3:
            return "patches"
        return "tiles" if self._tiles or self._patches else "slices"

    def slices(
        self, images: Iterable[np.ndarray], spacings_mm: Iterable[Spacing | None] = UNKNOWN
    ) -> Iterator[Float[np.ndarray, "height width classes"]]:
        """Class probabilities of each slice of each case in turn; see `rows`."""
        heights: collections.deque[int] = collections.deque()

        def noted() -> Iterator[np.ndarray]:
            for image in images:
                heights.extend([image.shape[1]] * len(image))
                yield image

        parts: list[np.ndarray] = []
        for rows in self.rows(noted(), spacings_mm=spacings_mm):
            parts.append(rows)
            if sum(map(len, parts)) == heights[0]:
                yield np.concatenate(parts) if len(parts) > 1 else parts[0]
                heights.popleft()
                parts.clear()

    def rows(
        self,
        images: Iterable[np.ndarray],
        report: Callable[[int], object] = lambda inputs: None,
        spacings_mm: Iterable[Spacing | None] = UNKNOWN,
    ) -> Iterator[Float[np.ndarray, "rows width classes"]]:
        """Class probabilities of each slice of each case in turn, some rows of it at a time.

        A network of slices sees them at the training size, or in tiles of it; its probabilities are
        interpolated linearly. A network of patches slides over a case, at the spacing that it was
        trained at; its probabilities come back to the grid of the case, again linearly. Slices,
        tiles and patches of several cases share a batch. Beside a case and two batches, memory
        holds what is blended: of a picture, rows as many as a tile has; of a volume, slices as many
        as a patch has.

        Args:
          images: of each case `[depth, height, width, channels]`, uint8 or uint16.
          report: called with the number of slices, tiles or patches that the network has done since
            last time, before what it found in them is given out.
          spacings_mm: of each case, `(depth, height, width)`; None where it is not known.
        """
        sized = zip(images, spacings_mm)  # noqa: B905  (unknown ones have no end)
        if len(self._input_size) == 3:
            volumes = (
                (image.shape[:3], resample_image(image, self._shape_seen(image, spacing_mm)))
                for image, spacing_mm in sized
            )
            for part in self._blended(volumes, PATCH_OVERLAP, report):
                yield from part
            return

        def slices() -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
            for image, spacing_mm in sized:
                _, *seen = self._shape_seen(image, spacing_mm)
                for of_slice in image:
                    yield image.shape[1:3], resample_image(of_slice, seen)

        for in_tiles, of_kind in itertools.groupby(slices(), lambda of: self._needs_tiles(of[1])):
            if in_tiles:
                yield from self._blended(of_kind, TILE_OVERLAP, report)
            else:
                yield from self._resized((of_slice for _, of_slice in of_kind), report)

    def count_inputs(self, image: np.ndarray, spacing_mm: Spacing | None = None) -> int:
        """How many slices, tiles or patches the network sees of a case."""
        seen = self._shape_seen(image, spacing_mm)
        if len(self._input_size) == 3:
            return len(window_starts(seen, self._input_size, PATCH_OVERLAP))
        if not self._needs_tiles(image[0]):
            return len(image)
        return len(image) * len(window_starts(seen[1:], self._input_size, TILE_OVERLAP))

    def extra_bytes(self, image: np.ndarray, spacing_mm: Spacing | None = None) -> int:
        """Memory that a case takes beside itself: at another spacing, blended, or in components."""
        components = 5 * math.prod(image.shape[:3]) if self._largest else 0
        return max(components, self._blended_bytes(image, spacing_mm))

    def _blended_bytes(self, image: np.ndarray, spacing_mm: Spacing | None) -> int:
        if len(self._input_size) == 2 and not self._needs_tiles(image[0]):
            return 0
        depth, height, width = self._shape_seen(image, spacing_mm)
        across = height * width if len(self._input_size) == 3 else width
        blended = 4 * self._input_size[0] * across * (self.channels + 1)
        if (depth, height, width) == image.shape[:3]:
            return blended
        entries = depth if len(self._input_size) == 3 else 1
        return blended + 4 * entries * height * width * image.shape[-1]

    def _shape_seen(self, image: np.ndarray, spacing_mm: Spacing | None) -> tuple[int, ...]:
        """Depth, height and width of a case at the spacing that the network sees."""
        return shape_at(image.shape[:3], spacing_mm, self._spacing_mm)

    def decide(
        self, probabilities: Float[np.ndarray, "*spatial classes"]
    ) -> UInt[np.ndarray, "*spatial"]:
        """The most probable class, or all above the threshold: see `TrainedModel.labels`."""
        if self._softmax:
            return probabilities.argmax(-1).astype(np.uint8)
        return self._labels.pack(probabilities > self.threshold)

    def labels(
        self, image: np.ndarray, spacing_mm: Spacing | None = None
    ) -> UInt[np.ndarray, "depth height width"]:
        """What each voxel of a case `[depth, height, width, channels]` is; see `decide`."""
        rows = map(self.decide, self.rows([image], spacings_mm=[spacing_mm]))
        return self.finish(np.concatenate(list(rows)).reshape(image.shape[:3]))

    def finish(
        self, label: UInt[np.ndarray, "depth height width"]
    ) -> UInt[np.ndarray, "depth height width"]:
        """What is kept of the labels of a case: see `TrainedModel.largest`."""
        return keep_largest(label, self._labels, self._largest)

    def _needs_tiles(self, of_slice: np.ndarray) -> bool:
        return self._patches or (self._tiles and max(of_slice.shape[:2]) > self._input_size[0])

    def _resized(
        self, slices: Iterable[np.ndarray], report: Callable[[int], object]
    ) -> Iterator[np.ndarray]:
        inputs = (
            (of_slice.shape[:2], resize_image(of_slice, self._slice_size)) for of_slice in slices
        )
        for (height, width), probabilities in self._in_batches(inputs, report):
            for rows in _parts(height, width):
                if len(rows) == height:
                    yield resize_image(probabilities, (height, width))
                else:
                    yield resize_rows(probabilities, (height, width), rows)

    def _blended(
        self,
        images: Iterable[tuple[tuple[int, ...], np.ndarray]],
        overlap: float,
        report: Callable[[int], object],
    ) -> Iterator[np.ndarray]:
        """Blends tiles of pictures `[height, width, channels]`, or patches of volumes.

        Each comes with the shape that its probabilities are brought to.
        """
        size = self._input_size
        windows = (
            ((number, wanted, image.shape[:-1], start), fit_patch(image, start, size))
            for number, (wanted, image) in enumerate(images)
            for start in window_starts(image.shape[:-1], size, overlap)
        )
        of_windows = self._in_batches(windows, report)
        for (_, wanted, shape), of_image in itertools.groupby(of_windows, lambda item: item[0][:3]):
            parts = blend(shape, size, ((start, p) for (*_, start), p in of_image))
            if wanted == shape:
                yield from parts
            elif len(shape) == 3:
                slices = itertools.chain.from_iterable(parts)
                for of_slice in resample_slices(slices, shape[0], wanted):
                    yield of_slice[None]
            else:
                yield from resample_slices([np.concatenate(list(parts))], 1, (1, *wanted))

    def _in_batches(
        self, inputs: Iterable[tuple[Any, np.ndarray]], report: Callable[[int], object]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """Puts in the place of each input its probabilities, whatever stands beside it.

        The next batch is put together while the network computes.
        """
        running: list[tuple[list[Any], list[Array]]] = []
        # the type says what the highest value is, so a batch has one
        for _, alike in itertools.groupby(inputs, key=lambda pair: pair[1].dtype):
            while part := list(itertools.islice(alike, self._batch_size)):
                # one compiled shape: the last batch is filled up
                short = self._batch_size - len(part)
                batch = np.stack([image for _, image in part] + [part[-1][1]] * short)
                running.append(([beside for beside, _ in part], self._start(batch)))
                if len(running) == 2:
                    yield from self._finish(*running.pop(0), report)
        for of_batch in running:
            yield from self._finish(*of_batch, report)

    def _start(self, images: np.ndarray) -> list[Array]:
        return [self.network(np.flip(images, axes)) for axes in self._flips]

    def _finish(
        self, beside: list[Any], outputs: list[Array], report: Callable[[int], object]
    ) -> Iterator[tuple[Any, np.ndarray]]:
        mirrored = [
            np.flip(np.asarray(output), axes)
            for output, axes in zip(outputs, self._flips, strict=True)
        ]
        probabilities = np.mean(mirrored, axis=0) if len(mirrored) > 1 else mirrored[0]
        report(len(beside))
        yield from zip(beside, probabilities, strict=False)


def blend(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    windows: Iterable[tuple[tuple[int, ...], np.ndarray]],
) -> Iterator[Float[np.ndarray, "part *rest classes"]]:
    """Means of windows that overlap, each weighted towards its middle, part by part.

    Args:
      shape: of the whole, two or three axes.
      size: of a window.
      windows: where each starts, as `window_starts` orders them, and `[*size, classes]` of it.

    Yields:
      The whole along its first axis, in parts.
    """
    weights = gaussian_window(size)
    # from `first` on: what lies above is done, what lies below not yet begun
    first = 0
    total = weight = np.empty(0)
    for start, values in windows:
        if not total.size:
            total = np.zeros((size[0], *shape[1:], values.shape[-1]), np.float32)
            weight = np.zeros((size[0], *shape[1:], 1), np.float32)
        if done := start[0] - first:
            for part in _parts(done, math.prod(shape[1:])):
                yield total[part.start : part.stop] / weight[part.start : part.stop]
            for buffer in (total, weight):
                buffer[:-done] = buffer[done:]
                buffer[-done:] = 0
            first = start[0]
        rest = [
            slice(s, min(s + n, whole))
            for s, n, whole in zip(start[1:], size[1:], shape[1:], strict=True)
        ]
        inside = (slice(None), *(slice(part.stop - part.start) for part in rest))
        total[:, *rest] += (weights * values)[inside]
        weight[:, *rest] += weights[inside]
    # a window may be longer than the whole
    for part in _parts(shape[0] - first, math.prod(shape[1:])):
        yield total[part.start : part.stop] / weight[part.start : part.stop]


def _parts(length: int, entry_pixels: int) -> Iterator[range]:
    """Cuts `length` entries of so many pixels each into parts of bounded size."""
    step = max(1, PART_PIXELS // entry_pixels)
    for start in range(0, length, step):
        yield range(start, min(start + step, length))


def apply_network(
    model: nn.Module, activation: Activation, variables: dict[str, Any], images: Array
) -> Float[Array, "batch *spatial classes"]:
    """Class probabilities of a batch of images: uint8, uint16, or float32 in [0, 1]."""
    return activate(model.apply(variables, to_unit_range(images), train=False), activation)


def window_starts(
    shape: tuple[int, ...], size: tuple[int, ...], overlap: float
) -> list[tuple[int, ...]]:
    """Where windows start that cover `shape` and overlap by that share of their size, or more."""
    axes = []
    for whole, window in zip(shape, size, strict=True):
        room = max(0, whole - window)
        count = 1 + math.ceil(room / max(1, int(window * (1 - overlap))))
        axes.append(np.linspace(0, room, count).astype(int).tolist())
    return list(itertools.product(*axes))


def gaussian_window(size: tuple[int, ...]) -> Float[np.ndarray, "*size 1"]:
    """Weights of a patch: a Gaussian whose deviation is an eighth of its size, as nnU-Net has."""
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in size]
    window = functools.reduce(np.multiply.outer, axes)
    return np.maximum(window, 1e-3 * window.max()).astype(np.float32)[..., None]
