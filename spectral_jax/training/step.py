"""One training step and one validation step, each a single compiled function."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from spectral_jax.data.augment import augment, to_unit_range
from spectral_jax.data.labels import Labels
from spectral_jax.losses.activation import Activation
from spectral_jax.models import compiler_options, suited
from spectral_jax.training.config import Config
from spectral_jax.training.objective import Objective
from spectral_jax.training.optim import (
    build_optimizer,
    ema_decay_schedule,
    learning_rate_schedule,
    spectral_weight_schedule,
)
from spectral_jax.training.sharding import AXES, mesh_of, platform_of, replicated, split_batch
from spectral_jax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    model: nn.Module, config: Config, total_steps: int, layout: TrainState, objective: Objective
) -> jax.stages.Wrapped:
    """Returns the jitted update; `layout` holds the shardings of the state.

    It is from `(TrainState, Batch)` to `(TrainState, Metrics)`: from the state, whose memory it
    reuses, and a batch of `image` `[batch, size, size, channels]` (integer, or in [0, 1]) and
    `label` `[batch, size, size]`, split over the mesh, to the next state and the loss, its terms,
    the gradient's norm, the learning rate and the spectral weight.
    """
    mesh = mesh_of(layout)
    model = suited(model, platform_of(mesh))
    parts = config.train.accumulate
    optimizer = build_optimizer(config.optim, total_steps)
    learning_rate = learning_rate_schedule(config.optim, total_steps)
    spectral_weight = spectral_weight_schedule(config, total_steps)
    ema_decay = ema_decay_schedule(config.optim)

    def terms_of_shard(logits, labels, weight):
        if platform_of(mesh) == "tpu":  # few classes side by side would leave its registers empty
            spatial_axes = range(1, logits.ndim - 1)
            logits = with_layout_constraint(logits, Layout((0, logits.ndim - 1, *spatial_axes)))
        return objective(logits, labels, weight)

    # each device transforms its own part of the batch; only sums leave it
    terms_of_batch = jax.shard_map(
        terms_of_shard, mesh=mesh, in_specs=(P(AXES), P(AXES), P()), out_specs=P()
    )

    def apply(params, batch_stats, images, dropout_key):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        return updates.get("batch_stats", {}), logits

    def apply_in_parts(params, batch_stats, images, dropout_key):
        """Goes through the network in parts, keeping their logits only.

        The loss sees the logits of the whole batch, as what it pools over the batch does not add up
        over parts; going back, each part goes through the network once more.
        """

        def apply_part(batch_stats, part):
            index, images = part
            return apply(params, batch_stats, images, jax.random.fold_in(dropout_key, index))

        # on CPU, XLA runs convolutions inside a loop 20 times slower; without the loop the memory
        # of all parts is kept, and going through the network once more would save nothing
        on_cpu = platform_of(mesh) == "cpu"
        batch_stats, logits = jax.lax.scan(
            apply_part if on_cpu else jax.checkpoint(apply_part),
            batch_stats,
            # each device takes its parts from its own examples
            (jnp.arange(parts), split_parts(images, parts, mesh)),
            unroll=on_cpu,
        )
        return batch_stats, join_parts(logits, mesh)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        augment_key, dropout_key = jax.random.split(key)
        with jax.named_scope("augmentation"):
            images, labels = augment(
                augment_key,
                to_unit_range(batch["image"]),
                batch["label"],
                **dataclasses.asdict(config.augment),
            )
        weight = jnp.asarray(spectral_weight(state.step), jnp.float32)

        def loss_and_rest(params):
            forward = apply if parts == 1 else apply_in_parts
            with jax.named_scope("network"):
                batch_stats, logits = forward(params, state.batch_stats, images, dropout_key)
            with jax.named_scope("loss"):
                terms = terms_of_batch(logits, labels, weight)
            return terms["loss"], (terms, batch_stats)

        # parameters come together and gradients are split again: the pictures stay where they are
        params = jax.lax.with_sharding_constraint(state.params, replicated(mesh))
        gradients, (terms, batch_stats) = jax.grad(loss_and_rest, has_aux=True)(params)
        gradients = jax.lax.with_sharding_constraint(gradients, layout.params)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            ema_params = state.ema_params
            if ema_params is not None:
                decay = ema_decay(state.step)
                ema_params = optax.incremental_update(params, ema_params, 1 - decay)
        metrics = {
            **terms,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": jnp.asarray(learning_rate(state.step)),
        }
        if "spectral" in terms:
            metrics["spectral_weight"] = weight
        state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
        )
        return state, metrics

    return jax.jit(
        train_step,
        in_shardings=(layout, split_batch(mesh)),
        out_shardings=(layout, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(platform_of(mesh)),
    )


def split_parts(
    images: Float[Array, "batch *rest"], parts: int, mesh: Mesh
) -> Float[Array, "parts part *rest"]:
    """Parts of a batch, each with as many examples of every device; nothing moves."""
    by_device = images.reshape(mesh.size, parts, -1, *images.shape[1:])
    split = NamedSharding(mesh, P(None, AXES))
    return jax.lax.with_sharding_constraint(
        by_device.swapaxes(0, 1).reshape(parts, -1, *images.shape[1:]), split
    )


def join_parts(parts: Float[Array, "parts part *rest"], mesh: Mesh) -> Float[Array, "batch *rest"]:
    """Undoes `split_parts`."""
    by_device = parts.reshape(len(parts), mesh.size, -1, *parts.shape[2:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(
        by_device.reshape(-1, *parts.shape[2:]), split_batch(mesh)
    )


def make_validation_step(
    model: nn.Module,
    layout: TrainState,
    labels: Labels,
    activation: Activation,
    objective: Objective,
    weight: float,
) -> Callable[[dict, Batch], tuple[tuple[Int[Array, "batch classes"], ...], Float[Array, ""]]]:
    """Returns the jitted function from variables and a batch to pixels and the loss.

    `layout` holds the shardings of the training state that the variables are from. Counted per
    example and class are pixels in both prediction and truth, in the truth, in the prediction:
    `metrics.overlap.Counts` of the classes without the background. The loss is the objective's,
    with this weight of its spectral part.
    """

    mesh = mesh_of(layout)
    model = suited(model, platform_of(mesh))
    terms_of_batch = jax.shard_map(
        objective, mesh=mesh, in_specs=(P(AXES), P(AXES), P()), out_specs=P()
    )

    def validation_step(variables, batch):
        variables = jax.lax.with_sharding_constraint(variables, replicated(mesh))
        logits = model.apply(variables, to_unit_range(batch["image"]), train=False)
        true = labels.masks(batch["label"])
        if activation == "sigmoid":
            predicted = logits > 0  # a probability above 1/2
        else:
            predicted = Labels(labels.classes).masks(jnp.argmax(logits, -1).astype(jnp.uint8))
        if labels.ignore:
            predicted &= labels.valid(batch["label"])[..., None]
        axes = tuple(range(1, true.ndim - 1))
        counts = tuple(
            jnp.sum(mask, axis=axes, dtype=jnp.int32)
            for mask in (predicted & true, true, predicted)
        )
        return counts, terms_of_batch(logits, batch["label"], jnp.float32(weight))["loss"]

    return jax.jit(
        validation_step,
        in_shardings=(layout.variables, split_batch(mesh)),
        out_shardings=replicated(mesh),
        compiler_options=compiler_options(platform_of(mesh)),
    )
