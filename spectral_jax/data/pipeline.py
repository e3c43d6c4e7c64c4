"""The order of training examples, and batches of them, with grain."""

from collections.abc import Iterator

import grain
import numpy as np

from spectral_jax.data.sources import CutPatch, TrainingSlices, TrainingVolumes


def training_batches(
    examples: TrainingSlices | TrainingVolumes,
    *,
    batch_size: int,
    seed: int,
    cut_patch: CutPatch | None = None,
    first_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields this process's share of each global batch, for ever, from `first_step` on.

    The global batch of a step, and the order in it, are functions of `seed` and the step alone:
    processes take turns in one shuffled order, a block each, so any number of them makes the same
    batches, and a run resumes from its step number. Each epoch has an order of its own; a batch may
    span two.

    Args:
      examples: what to draw from.
      batch_size: of all processes together.
      seed: of the order and of what is random in `cut_patch`.
      cut_patch: applied to each example, with a generator and a number that depend on its place in
        the order.
      first_step: the step of the first batch.
      process_index: of this process.
      process_count: how many processes share the batch.

    Raises:
      ValueError: if the batch cannot be shared out evenly.
    """
    if batch_size % process_count:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared evenly by {process_count} processes"
        )
    dataset = grain.MapDataset.source(examples).seed(seed).shuffle().repeat()
    if cut_patch is not None:
        if cut_patch.foreground:
            dataset = dataset.map_with_index(lambda number, of: {**of, "number": number})
        dataset = dataset.random_map(cut_patch)
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
    dataset = dataset[process_index::process_count]
    iterator = iter(
        dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    )
    grain.experimental.set_next_index(iterator, first_step)
    return iterator
