"""Where a network looks: Seg-Grad-CAM, LayerCAM and attention rollout, and how far to trust them.

A map is scored by the share of it that lies inside the true object (energy inside), by whether its
peak does (pointing game), by how fast the object appears or vanishes as pixels are shown or hidden
in the map's order (insertion, deletion), and by whether it changes when the weights are randomised.
"""

import dataclasses
import difflib
import functools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
from etils import epath
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from spectral_jax.data.labels import Labels
from spectral_jax.data.pictures import to_show
from spectral_jax.data.sources import Split, resize_image, resize_label
from spectral_jax.evaluation.cases import (
    FullestSlice,
    MatchedCases,
    fullest_slices,
    interruptible,
    result_header,
    write_result,
)
from spectral_jax.inference.predictor import Predictor
from spectral_jax.inference.trained import TrainedModel
from spectral_jax.losses import activate
from spectral_jax.losses.activation import Activation
from spectral_jax.metrics.ranking import rank_correlation

FOLDER = "explanation"
METHODS = ("seg_grad_cam", "layer_cam")
ROLLOUT = "attention_rollout"
STEPS = 10  # of insertion and deletion
SCORES = ("energy_inside", "pointing", "insertion_auc", "deletion_auc")
RANDOMISED_CASES = 5  # each layer's randomisation takes a map of every class of these


def class_activation_map(
    model: nn.Module,
    variables: Any,
    images: Float[Array, "batch height width channels"],
    *,
    feature: str,
    class_index: int | Int[Array, ""],
    region: Bool[Array, "batch height width"],
    method: str = "seg_grad_cam",
) -> Float[Array, "batch height width"]:
    r"""Where in a feature the evidence for a class lies.

    With `y` the sum of the class's logits over `region`, `A_k` channel `k` of the feature and
    `u` a pixel, Seg-Grad-CAM (arXiv 2002.11434) is `relu(sum_k A_k mean_u(dy/dA_k))` and LayerCAM
    (Jiang et al., IEEE TIP 2021) `relu(sum_k A_k relu(dy/dA_k))`, with the gradient of each pixel.
    The map is interpolated linearly to the images' size and divided by its maximum.

    Args:
      model: a network whose features are what its own submodules return: UNet, TransUNet.
      variables: what to apply it with.
      images: as the network takes them, in [0, 1].
      feature: one of those of `return_features=True`; TransUNet's `tokens` are folded to their
        grid. The gradient of a `skip` is by what the decoder reads of it, not by deeper layers.
      class_index: of the class among the logits.
      region: the pixels of interest, usually those predicted as the class.
      method: "seg_grad_cam" or "layer_cam".

    Returns:
      Values in [0, 1]; a map without any positive evidence is 0 everywhere.

    Raises:
      ValueError: for an unknown feature or method, or images that are not 2-D.
    """
    if images.ndim != 4:
        raise ValueError(
            f"images must be [batch, height, width, channels], got shape {images.shape}: "
            "explanations are of 2-D networks"
        )
    if method not in METHODS:
        raise ValueError(f"method={method!r}; choose one of {METHODS}")
    places = _places(model, variables, images)
    if feature not in places:
        nearest = difflib.get_close_matches(feature, places)
        hint = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
        raise ValueError(f"no feature {feature!r}: {hint}The network has {', '.join(places)}")
    return _activation_map(
        model, feature, places[feature], method, variables, images, class_index, region
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _activation_map(
    model: nn.Module,
    feature: str,
    place: tuple[str, int],
    method: str,
    variables: Any,
    images: Array,
    class_index: Any,
    region: Array,
) -> Array:
    child, position = place

    def score(change):
        def add(call, args, kwargs, context):
            output = call(*args, **kwargs)
            if context.module.path != (child,) or context.method_name != "__call__":
                return output
            leaves, structure = jax.tree.flatten(output)
            leaves[position] = leaves[position] + change
            return jax.tree.unflatten(structure, leaves)

        with nn.intercept_methods(add):
            logits, features = model.apply(variables, images, train=False, return_features=True)
        return jnp.sum(logits[..., class_index] * region), features[feature]

    shape = jax.eval_shape(
        lambda: model.apply(variables, images, train=False, return_features=True)[1][feature]
    )
    # the gradient by what is added to a feature, here nothing, is that by the feature
    gradient, values = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    gradient, values = (_as_grid(x.astype(jnp.float32), images.shape) for x in (gradient, values))
    if method == "seg_grad_cam":
        weights = gradient.mean((1, 2), keepdims=True)
    else:
        weights = nn.relu(gradient)
    return to_image(nn.relu((weights * values).sum(-1)), images.shape)


def _places(model: nn.Module, variables: Any, images: Array) -> dict[str, tuple[str, int]]:
    """Of each feature the submodule that returns it, and its number among what that returns."""
    outputs: dict[int, tuple[str, int]] = {}
    kept = []  # so that no two arrays have the same id

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if len(context.module.path) == 1 and context.method_name == "__call__":
            for position, leaf in enumerate(jax.tree.leaves(output)):
                kept.append(leaf)
                outputs[id(leaf)] = (context.module.name, position)
        return output

    places = {}

    def trace(variables, images):
        with nn.intercept_methods(record):
            _, features = model.apply(variables, images, train=False, return_features=True)
        for name, feature in features.items():
            if id(feature) in outputs and not name.startswith("attention"):
                places[name] = outputs[id(feature)]

    jax.eval_shape(trace, variables, images)
    return places


def _as_grid(x: Array, image_shape: tuple[int, ...]) -> Array:
    """Tokens `[batch, n, ...]` at their place in the image; what has a place is left alone."""
    if x.ndim == 4:
        return x
    _, height, width, _ = image_shape
    patch = math.isqrt(height * width // x.shape[1])
    return x.reshape(x.shape[0], height // patch, width // patch, x.shape[-1])


def to_image(
    maps: Float[Array, "batch h w"], image_shape: tuple[int, ...]
) -> Float[Array, "batch height width"]:
    """Interpolates to the image, which features may overlap at its far edges; maximum 1."""
    batch, height, width, _ = image_shape
    # each pixel of a feature stands for a power of two of the image's
    sizes = [
        small * 2 ** math.ceil(math.log2(max(1, size / small)))
        for small, size in zip(maps.shape[1:], (height, width), strict=True)
    ]
    maps = jax.image.resize(maps, (batch, *sizes), "linear")[:, :height, :width]
    highest = maps.max((1, 2), keepdims=True)
    return jnp.where(highest > 0, maps / jnp.where(highest > 0, highest, 1), 0)


def attention_rollout(
    attention: Sequence[Float[Array, "batch heads n n"]],
) -> Float[Array, "batch n n"]:
    """How much each token draws on each token of the first layer (arXiv 2005.00928).

    `R = B_L ... B_1` with `B_l = (mean over heads of A_l + identity) / 2`: half of what a layer
    passes on is its input.

    Args:
      attention: maps of the layers, first to last; their rows sum to one.

    Returns:
      Rows sum to one.

    >>> attention_rollout([jnp.full((1, 2, 2, 2), 0.5)])[0].tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    rollout = jnp.eye(attention[0].shape[-1])
    for weights in attention:
        rollout = (weights.mean(1) + jnp.eye(weights.shape[-1])) / 2 @ rollout
    return rollout


def rollout_map(
    rollout: Float[Array, "batch n n"], region: Bool[Array, "batch height width"]
) -> Float[Array, "batch height width"]:
    """What the tokens of a region draw on, at the image's size, with maximum 1.

    Args:
      rollout: of `attention_rollout`.
      region: each token counts by the pixels of its patch that are in it.
    """
    batch, height, width = region.shape
    patch = math.isqrt(height * width // rollout.shape[-1])
    share = region.reshape(batch, height // patch, patch, width // patch, patch).sum((2, 4))
    drawn = jnp.einsum("bn,bnm->bm", share.reshape(batch, -1).astype(rollout.dtype), rollout)
    return to_image(drawn.reshape(share.shape), (*region.shape, 1))


def energy_inside(
    explanation: Float[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]
) -> float:
    """The share of a map that lies inside a mask; NaN for a map of zeros.

    >>> energy_inside(np.array([[1.0, 3.0]]), np.array([[False, True]]))
    0.75
    """
    total = explanation.sum(dtype=np.float64)
    return float(explanation[mask].sum(dtype=np.float64) / total) if total > 0 else math.nan


def pointing_game(
    explanation: Float[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]
) -> float:
    """1 if the map's peak lies inside a mask, else 0; NaN for a map of zeros.

    >>> pointing_game(np.array([[1.0, 3.0]]), np.array([[False, True]]))
    1.0
    """
    return float(mask.flat[explanation.argmax()]) if explanation.max() > 0 else math.nan


def insertion_deletion(
    model: nn.Module,
    variables: Any,
    image: Float[np.ndarray, "height width channels"],
    explanation: Float[np.ndarray, "height width"],
    *,
    class_index: int,
    mask: Bool[np.ndarray, "height width"],
    activation: Activation = "softmax",
    steps: int = STEPS,
) -> tuple[Float[np.ndarray, " steps+1"], Float[np.ndarray, " steps+1"]]:
    """The class's mean probability inside a mask as pixels are shown, and as they are hidden.

    In the order of the map, most important first (arXiv 1806.07421). What is hidden is replaced
    by the image blurred with a Gaussian whose deviation is a tenth of the shorter side. The area
    under a curve is `auc(curve)`: a map that found the evidence has a large one of insertion
    and a small one of deletion.

    Args:
      model: the network.
      variables: what to apply it with.
      image: as the network takes it, in [0, 1].
      explanation: the map.
      class_index: of the class among the logits.
      mask: where the class truly is; not empty.
      activation: that makes probabilities of the logits.
      steps: curves have `steps + 1` values, at 0, 1/steps, ... 1 of the pixels.

    Returns:
      The curves of insertion and deletion.
    """
    deviation = min(image.shape[:2]) / 10
    blurred = scipy.ndimage.gaussian_filter(image, (deviation, deviation, 0))
    order = np.argsort(-explanation, axis=None, kind="stable")
    ranks = np.argsort(order).reshape(explanation.shape)
    both = _probability_inside(
        model, steps, activation, variables, image, blurred, ranks, class_index, mask
    )
    inserted, deleted = np.asarray(both, np.float64)
    return inserted, deleted


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _probability_inside(
    model, steps, activation, variables, image, blurred, ranks, class_index, mask
):
    counts = jnp.arange(steps + 1) * (ranks.size / steps)
    first = ranks < counts[:, None, None]
    shown = jnp.stack([first, ~first])[..., None]
    images = jnp.where(shown, image, blurred)
    logits = model.apply(variables, images.reshape(-1, *image.shape), train=False)
    probabilities = activate(logits, activation)[..., class_index]
    return ((probabilities * mask).sum((1, 2)) / mask.sum()).reshape(2, -1)


def auc(curve: Float[np.ndarray, " points"]) -> float:
    """The area under a curve over evenly spaced points of [0, 1].

    >>> auc(np.array([0.0, 1.0, 1.0]))
    0.75
    """
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def randomised(
    model: nn.Module, variables: Any, images: Float[Array, "batch height width channels"], seed: int
) -> Iterator[tuple[str, Any]]:
    """The network with ever more of its layers as they were before training, from the head down.

    The cascade of "Sanity checks for saliency maps" (arXiv 1810.03292): a map that stays the same
    does not depend on what was learnt. Layers are the submodules of the network, their running
    statistics included.

    Args:
      model: the network.
      variables: with what it learnt.
      images: to start it anew with.
      seed: of the random weights.

    Yields:
      The layer that was randomised last, and all variables.
    """
    fresh = jax.jit(model.init)(jax.random.key(seed), images)
    for layer in reversed(_call_order(model, variables, images)):
        variables = {
            kind: {
                name: fresh[kind][name] if name == layer else value for name, value in of.items()
            }
            for kind, of in variables.items()
        }
        yield layer, variables


def _call_order(model: nn.Module, variables: Any, images: Array) -> list[str]:
    """Names of the submodules with parameters, in the order in which they are first called."""
    order: dict[str, None] = {}

    def record(call, args, kwargs, context):
        if len(context.module.path) == 1:
            order.setdefault(context.module.name)
        return call(*args, **kwargs)

    def trace(variables, images):
        with nn.intercept_methods(record):
            return model.apply(variables, images, train=False)

    jax.eval_shape(trace, variables, images)
    return [name for name in order if name in variables["params"]]


def measure_explanations(
    trained: TrainedModel,
    split: Split,
    workdir: epath.Path,
    *,
    feature: str | None = None,
    method: str = "seg_grad_cam",
    max_cases: int = 20,
    checkpoint: str = "best",
    dataset: str = "",
) -> dict[str, Any]:
    """Explains the fullest slice of some cases, scores the maps, and writes the result.

    A map is of a class that is in the slice, from the pixels predicted as that class, and is
    scored against the true ones, at the network's size. Of several processes each computes all,
    and the first one writes `explanation/<dataset>-<split>.json`: a row for each case and class;
    the means, where "chance" is the mean share of the image that the truth covers, the expected
    energy and pointing of a map that knows nothing; the randomisation check; and the examples of
    highest, median and lowest energy, whose pictures are in the `-examples.npz` beside it.

    Args:
      trained: a network of slices.
      split: what to explain; classes are matched as `evaluate` does.
      workdir: the run's folder.
      feature: of the network; None for "bottleneck".
      method: "seg_grad_cam", "layer_cam", or for TransUNet "attention_rollout", which knows no
        feature and sees the class only through its predicted pixels.
      max_cases: how many cases to explain, evenly spread over the split.
      checkpoint: what the checkpoint is called in the result.
      dataset: what the data set is called in it; its own name by default.

    Returns:
      What is written.

    Raises:
      ValueError: for an unknown feature or method, a network of patches, or as `evaluate` does.
      Preempted: as `evaluate`.
    """
    start = time.perf_counter()
    if method == ROLLOUT and feature is not None:
        raise ValueError(f"feature={feature!r}: {ROLLOUT} is of all layers; leave feature out")
    if method != ROLLOUT:
        feature = feature or "bottleneck"
    classes = trained.data.classes
    explain = functools.partial(_explain, trained.model, feature=feature, method=method)
    predictor = Predictor(trained, batch_size=1)
    kept = MatchedCases(trained, split)
    rows: list[dict[str, Any]] = []
    shown: list[Shown] = []
    chances: list[float] = []
    slices = fullest_slices(trained, split, max_cases)
    with interruptible(len(slices), "explanations") as advance:
        for picture in slices:
            predicted = predictor.labels(picture.image[None])[0]
            predicted = kept.restrict(predicted, picture.valid)
            small = resize_label(predicted, picture.input.shape[:2])
            for number, mask in picture.masks.items():
                region = kept.labels.mask(small, number)
                channel = trained.channel(number)
                found = explain(trained.variables, picture.input, channel, region)
                inserted, deleted = insertion_deletion(
                    trained.model,
                    trained.variables,
                    picture.input,
                    found,
                    class_index=channel,
                    mask=mask,
                    activation=trained.activation,
                )
                blank = not found.any()  # says nothing, so its curves are of no order
                rows.append(
                    {
                        "case": picture.case,
                        "slice": picture.index,
                        "class": classes[number],
                        "energy_inside": energy_inside(found, mask),
                        "pointing": pointing_game(found, mask),
                        "insertion_auc": math.nan if blank else auc(inserted),
                        "deletion_auc": math.nan if blank else auc(deleted),
                    }
                )
                chances.append(float(mask.mean()))
                shown.append(Shown(picture, kept.labels, predicted, region, channel, found))
            advance(1)

    few = list(dict.fromkeys(row["case"] for row in rows))[:RANDOMISED_CASES]
    checked = [one for row, one in zip(rows, shown, strict=True) if row["case"] in few]
    examples, pictures = _examples(rows, shown)
    result = {
        **result_header(trained, split, checkpoint, dataset),
        "feature": feature,
        "method": method,
        "cases": rows,
        "summary": _summary(rows) | {"chance": float(np.mean(chances)) if chances else math.nan},
        "randomisation": _randomisation(trained, explain, checked),
        "examples": examples,
        "wall_seconds": time.perf_counter() - start,
    }
    write_result(workdir, FOLDER, result, pictures)
    return result


@dataclasses.dataclass(frozen=True)
class Shown:
    """A map of one class in one slice.

    Attributes:
      picture: the slice.
      labels: how its labels are to be read.
      predicted: labels at its original size.
      region: the pixels predicted as the class, at the network's size.
      channel: of the class's logits.
      found: the map.
    """

    picture: FullestSlice
    labels: Labels
    predicted: np.ndarray
    region: np.ndarray
    channel: int
    found: np.ndarray


def _explain(
    model: nn.Module,
    variables: Any,
    image: np.ndarray,
    channel: int,
    region: np.ndarray,
    *,
    feature: str | None,
    method: str,
) -> np.ndarray:
    """The map of one image."""
    if method == ROLLOUT:
        attention = _attention(model, variables, image[None])
        if not attention:
            raise ValueError(f"method={method!r}: the network has no attention; see {METHODS}")
        return np.asarray(rollout_map(attention_rollout(attention), jnp.asarray(region[None])))[0]
    maps = class_activation_map(
        model,
        variables,
        jnp.asarray(image[None]),
        feature=feature or "bottleneck",
        class_index=channel,
        region=jnp.asarray(region[None]),
        method=method,
    )
    return np.asarray(maps[0])


@functools.partial(jax.jit, static_argnums=0)
def _attention(model: nn.Module, variables: Any, images: Array) -> list[Array]:
    """The attention maps of the layers, first to last; none for a network without."""
    _, features = model.apply(variables, images, train=False, return_features=True)
    layers = sum(name.startswith("attention") for name in features)
    return [features[f"attention{i}"] for i in range(layers)]


def _summary(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Of each score the mean and the numbers of values, defined and undefined."""
    summary = {}
    for score in SCORES:
        values = np.array([row[score] for row in rows], float)
        defined = values[~np.isnan(values)]
        summary[score] = {
            "mean": float(defined.mean()) if defined.size else math.nan,
            "count": defined.size,
            "undefined": values.size - defined.size,
        }
    return summary


def _randomisation(trained: TrainedModel, explain: Any, checked: list[Shown]) -> dict[str, Any]:
    """The mean rank correlation of maps with those of the randomised network, layer by layer."""
    layers, correlations, counts = [], [], []
    if checked:
        images = jnp.asarray(checked[0].picture.input[None])
        seed = trained.config.train.seed + 1  # not the weights that training began with
        total = len(_call_order(trained.model, trained.variables, images))
        with interruptible(total, "randomised", unit="layer") as advance:
            for layer, variables in randomised(trained.model, trained.variables, images, seed):
                values = []
                for of in checked:
                    other = explain(variables, of.picture.input, of.channel, of.region)
                    values.append(rank_correlation(of.found, other)["spearman"])
                defined = [value for value in values if not math.isnan(value)]
                layers.append(layer)
                correlations.append(float(np.mean(defined)) if defined else math.nan)
                counts.append(len(defined))
                advance(1)
    return {"layers": layers, "rank_correlation": correlations, "count": counts}


def _examples(
    rows: list[dict[str, Any]], shown: list[Shown]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The maps of highest, median and lowest energy inside, at the original size."""
    ranked = [i for i, row in enumerate(rows) if not math.isnan(row["energy_inside"])]
    ranked.sort(key=lambda i: rows[i]["energy_inside"], reverse=True)
    positions = {"highest": 0, "median": len(ranked) // 2, "lowest": len(ranked) - 1}
    examples, pictures = [], {}
    for key, position in list(positions.items())[: len(ranked)]:
        row, of = rows[ranked[position]], shown[ranked[position]]
        image = of.picture.image
        at_size = resize_image(of.found[..., None], image.shape[:2])[..., 0]
        pictures[f"{key}_image"] = to_show(image)
        pictures[f"{key}_label"] = of.labels.topmost(of.picture.label)
        pictures[f"{key}_prediction"] = of.labels.topmost(of.predicted)
        pictures[f"{key}_map"] = at_size.astype(np.float16)
        examples.append({"key": key, **{k: row[k] for k in ("case", "slice", "class")}})
    return examples, pictures
