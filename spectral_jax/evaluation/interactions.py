"""How many patches of an image a network combines: the strength of interactions of each order.

After "Discovering and explaining the representation bottleneck of DNNs" (arXiv 2111.06236), for
segmentation. An interaction of two patches has the order `m` of the number of other patches that
are seen with them: low orders are local, high ones need nearly the whole image. Order is not
spatial frequency: that a loss of middle frequencies makes interactions of middle orders is a
hypothesis, which this measures.
"""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from spectral_jax.data.sources import Split
from spectral_jax.evaluation.cases import (
    FullestSlice,
    fullest_slices,
    interruptible,
    result_header,
    write_result,
)
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.losses.activation import Activation
from spectral_jax.training.build import channels_out

FOLDER = "interactions"
RATIOS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
DISTANCE = 2  # Chebyshev, in patches, of the pairs
BATCH = 32  # masked images at once
MIDDLE = (0.3, 0.7)


def interaction_strengths(
    value_fn: Callable[[Bool[np.ndarray, "sets players"]], Float[np.ndarray, "sets *outcomes"]],
    players: int,
    pairs: Sequence[tuple[int, int]],
    orders: Sequence[int],
    contexts: int | None,
    rng: np.random.Generator | None = None,
) -> list[Float[np.ndarray, "pairs contexts *outcomes"]]:
    """What two players add together beyond what each adds, in contexts of each order.

    `v(S + i + j) - v(S + i) - v(S + j) + v(S)` for sets `S` of `m` other players. Its mean over
    `S` is the interaction `I^(m)(i, j)` of order `m`.

    Args:
      value_fn: the game: from the players in each set to the set's value, or values.
      players: their number.
      pairs: of two different players.
      orders: sizes `m` of the contexts, 0 to `players - 2`.
      contexts: how many to draw for each pair and order, or None for all that there are.
      rng: to draw them with.

    Returns:
      The terms of each order.

    Raises:
      ValueError: for an order out of range, or if contexts are to be drawn without `rng`.

    >>> product = lambda sets: np.prod(sets, axis=-1, dtype=float)
    >>> [term] = interaction_strengths(product, 3, [(0, 1)], [1], contexts=None)
    >>> term.mean()
    np.float64(1.0)
    """
    if any(not 0 <= order <= players - 2 for order in orders):
        raise ValueError(f"orders {list(orders)}: with {players} players, 0 to {players - 2}")
    if contexts is not None and rng is None:
        raise ValueError("contexts are drawn at random: give rng, or contexts=None for all")
    terms = []
    for order in orders:
        sets = np.stack([_contexts(players, pair, order, contexts, rng) for pair in pairs])
        kinds = np.stack([sets] * 4)  # neither, only i, only j, both
        for position, (i, j) in enumerate(pairs):
            kinds[[1, 3], position, :, i] = True
            kinds[[2, 3], position, :, j] = True
        values = value_fn(kinds.reshape(-1, players))
        neither, only_i, only_j, both = values.reshape(*kinds.shape[:3], *values.shape[1:])
        terms.append(both - only_i - only_j + neither)
    return terms


def _contexts(
    players: int, pair: tuple[int, int], order: int, count: int | None, rng: Any
) -> Bool[np.ndarray, "contexts players"]:
    others = np.setdiff1d(np.arange(players), pair)
    if count is None:
        chosen = np.array(list(itertools.combinations(others, order)), int)
    else:
        chosen = rng.permuted(np.tile(others, (count, 1)), axis=1)[:, :order]
    sets = np.zeros((len(chosen), players), bool)
    np.put_along_axis(sets, chosen, True, axis=1)
    return sets


def class_evidence(
    logits: Float[Array, "batch height width channels"],
    masks: Bool[Array, "height width channels"],
    activation: Activation = "softmax",
) -> Float[Array, "batch channels"]:
    """Mean log odds of each class over the pixels that truly have it.

    `v_c = mean over u of class c of log(p_c(u) / (1 - p_c(u)))`; 0 for a class that is nowhere.
    With "softmax" that is `z_c(u) - log(sum over c' != c of exp(z_c'(u)))`, with "sigmoid"
    `z_c(u)`.

    Args:
      logits: of the network, a channel for each class that has one.
      masks: where each truly is.
      activation: that makes probabilities of the logits.
    """
    evidence = []
    for c in range(logits.shape[-1]):
        others = jnp.zeros(())
        if activation == "softmax":
            others = jax.nn.logsumexp(jnp.delete(logits, c, axis=-1), axis=-1)
        mask = masks[..., c]
        total = ((logits[..., c] - others) * mask).sum((1, 2))
        evidence.append(total / jnp.maximum(1, mask.sum()))
    return jnp.stack(evidence, axis=-1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _masked_evidence(
    model: nn.Module, grid: int, activation: Activation, variables, image, masks, sets
):
    """`class_evidence` of an image of which only the patches of each set are there."""
    height, width, _ = image.shape
    present = sets.reshape(-1, grid, grid)
    present = present[:, jnp.arange(height) * grid // height]
    present = present[:, :, jnp.arange(width) * grid // width]
    logits = model.apply(variables, jnp.where(present[..., None], image, 0), train=False)
    return class_evidence(logits, masks, activation)


def draw_pairs(grid: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Different pairs of patches of a `grid x grid`, at a Chebyshev distance of at most two.

    Args:
      grid: patches along each side.
      count: how many; all of them if there are fewer.
      rng: to draw them with.
    """
    places = list(itertools.product(range(grid), repeat=2))
    near = [
        (i, j)
        for i, j in itertools.combinations(range(grid**2), 2)
        if max(abs(a - b) for a, b in zip(places[i], places[j], strict=True)) <= DISTANCE
    ]
    drawn = rng.choice(len(near), min(count, len(near)), replace=False)
    return [near[position] for position in drawn]


def middle_share(ratios: Sequence[float], strength: Float[np.ndarray, " orders"]) -> float:
    """The share of the area under strength over ratio that lies between ratios 0.3 and 0.7.

    Args:
      ratios: of the order to its highest, ascending.
      strength: of the interactions at those orders.

    >>> round(middle_share([0, 0.5, 1], np.ones(3)), 6)
    0.4
    """
    inside = [ratio for ratio in ratios if MIDDLE[0] < ratio < MIDDLE[1]]
    at = np.array([MIDDLE[0], *inside, MIDDLE[1]])
    middle = np.trapezoid(np.interp(at, ratios, strength), at)
    return float(middle / np.trapezoid(strength, ratios))


def measure_interactions(
    trained: TrainedModel,
    split: Split,
    workdir: epath.Path,
    *,
    grid: int = 8,
    ratios: Sequence[float] = RATIOS,
    images: int = 10,
    pairs: int = 6,
    contexts: int = 6,
    seed: int = 0,
    checkpoint: str = "best",
    dataset: str = "",
) -> dict[str, Any]:
    """Measures the strength of interactions of each order, and writes the result.

    Players are the patches of a grid on the fullest slice of each case; an absent patch is 0. The
    value of a set is `class_evidence`. `|I^(m)|`, the modulus of the mean over contexts, is
    averaged over classes and pairs, then over images; `strength` is that, divided by its mean over
    the orders, so it depends on their list.

    Few contexts leave noise in the mean, which its modulus turns into strength: `strength` is
    biased towards equal orders. `half_a` and `half_b`, each of half the contexts, are biased more
    and show how much. `corrected` is not: the root of the mean product of the interactions
    of both halves, whose noise is independent, divided as `strength` is; 0 where that mean is
    negative. At the lowest and the highest order there is but one context, and so no such noise.

    Of several processes each computes all, and the first one writes
    `interactions/<dataset>-<split>.json`.

    Args:
      trained: a network of slices.
      split: what to measure it on; classes are matched as `evaluate` does.
      workdir: the run's folder.
      grid: patches along each side.
      ratios: orders, as shares of the highest, `grid**2 - 2`; ascending.
      images: how many, evenly spread over the split.
      pairs: of patches, for each image.
      contexts: for each pair and order, even.
      seed: of pairs and contexts; they are the same for every network, so runs can be paired.
      checkpoint: what the checkpoint is called in the result.
      dataset: what the data set is called in it; its own name by default.

    Returns:
      What is written; `by_image` are the strengths before the division, `standard_error` is that
      of `strength` over images, by leaving one out at a time.

    Raises:
      ValueError: for an option out of range, a network of patches, if no slice holds a class that
        the network knows, or as `evaluate` does.
      Preempted: as `evaluate`.
    """
    start = time.perf_counter()
    size = trained.config.data.image_size
    if not 2 <= grid <= size:
        raise ValueError(f"grid={grid}: expected 2 to {size}, the size of the images")
    ascending = list(ratios) == sorted(set(ratios))
    if len(ratios) < 2 or not ascending or ratios[0] < 0 or ratios[-1] > 1:
        raise ValueError(f"ratios={tuple(ratios)}: expected some from 0 to 1, ascending")
    if contexts < 2 or contexts % 2:
        raise ValueError(f"contexts={contexts}: expected an even number, to be split into halves")
    orders = [int((grid**2 - 2) * ratio) for ratio in ratios]
    slices = fullest_slices(trained, split, images)
    if not slices:
        raise ValueError(
            f"no slice of {split.info.name!r}, {split.name} split, holds one of "
            f"{', '.join(trained.data.classes[1:])}"
        )
    total = 4 * len(slices) * len(orders) * pairs * contexts
    terms = []  # per image: [orders, pairs, contexts, classes]
    with interruptible(total, "interactions", unit="set") as advance:
        for number, picture in enumerate(slices):
            rng = np.random.default_rng([seed, number])
            value_fn = _make_game(trained, picture, grid, advance)
            chosen = draw_pairs(grid, pairs, rng)
            of_image = interaction_strengths(value_fn, grid**2, chosen, orders, contexts, rng)
            terms.append(np.stack(of_image))
    whole = np.stack([_strength(t) for t in terms])
    half_a, half_b = (np.stack([_strength(t[:, :, k::2]) for t in terms]) for k in (0, 1))
    strength = _normalised(whole)
    result = {
        **result_header(trained, split, checkpoint, dataset),
        "grid": grid,
        "ratios": list(ratios),
        "orders": orders,
        "strength": strength.tolist(),
        "half_a": _normalised(half_a).tolist(),
        "half_b": _normalised(half_b).tolist(),
        "corrected": _corrected(terms).tolist(),
        "standard_error": _standard_error(whole).tolist(),
        "middle_share": middle_share(ratios, strength),
        "images": len(slices),
        "pairs": len(chosen),
        "contexts": contexts,
        "by_image": whole.tolist(),
        "wall_seconds": time.perf_counter() - start,
    }
    write_result(workdir, FOLDER, result)
    return result


def _make_game(
    trained: TrainedModel, picture: FullestSlice, grid: int, advance: Callable[[int], None]
) -> Callable[[np.ndarray], np.ndarray]:
    """The value of sets of patches: the evidence for each class that the slice holds."""
    channels = [trained.channel(number) for number in picture.masks]
    out = channels_out(trained.config, trained.data.labels)
    masks = np.zeros((*picture.input.shape[:2], out), bool)
    masks[..., channels] = np.stack(list(picture.masks.values()), axis=-1)

    def value_fn(sets):
        values = []
        for first in range(0, len(sets), BATCH):
            part = sets[first : first + BATCH]
            # one compiled shape: the last batch is filled up
            filled = np.pad(part, [(0, BATCH - len(part)), (0, 0)])
            evidence = _masked_evidence(
                trained.model,
                grid,
                trained.activation,
                trained.variables,
                picture.input,
                masks,
                filled,
            )
            values.append(np.asarray(evidence, np.float64)[: len(part), channels])
            advance(len(part))
        return np.concatenate(values)

    return value_fn


def _strength(
    terms: Float[np.ndarray, "orders pairs contexts classes"],
) -> Float[np.ndarray, " orders"]:
    return np.abs(terms.mean(2)).mean((1, 2))


def _normalised(by_image: Float[np.ndarray, "images orders"]) -> Float[np.ndarray, " orders"]:
    mean = by_image.mean(0)
    return mean / mean.mean()


def _corrected(
    terms: list[Float[np.ndarray, "orders pairs contexts classes"]],
) -> Float[np.ndarray, " orders"]:
    products = [(t[:, :, ::2].mean(2) * t[:, :, 1::2].mean(2)).mean((1, 2)) for t in terms]
    root = np.sqrt(np.maximum(0, np.mean(products, axis=0)))
    return root / root.mean()


def _standard_error(by_image: Float[np.ndarray, "images orders"]) -> Float[np.ndarray, " orders"]:
    """Of `_normalised`, by the jackknife over images; NaN for one image."""
    n = len(by_image)
    if n < 2:
        return np.full(by_image.shape[1], np.nan)
    left_out = np.stack([_normalised(np.delete(by_image, i, axis=0)) for i in range(n)])
    return np.sqrt((n - 1) * left_out.var(0))
