"""One training step and one validation step, each a single compiled function."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from spectral_jax.data.augment import augment, to_unit_range
from spectral_jax.losses import harmonized_terms
from spectral_jax.training.config import Config
from spectral_jax.training.optim import (
    build_optimizer,
    learning_rate_schedule,
    spectral_weight_schedule,
)
from spectral_jax.training.sharding import replicated, split_batch
from spectral_jax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Float[Array, ""]]


def make_train_step(
    model: nn.Module, config: Config, total_steps: int, mesh: Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Returns the jitted update.

    It takes the state, whose memory it reuses, and a batch of `image` `[batch, size, size,
    channels]` (integer, or in [0, 1]) and `label` `[batch, size, size]`, split over the mesh; and
    returns the next state and the loss, its terms, the gradient's norm, the learning rate and the
    spectral weight.
    """
    optimizer = build_optimizer(config.optim, total_steps)
    learning_rate = learning_rate_schedule(config.optim, total_steps)
    spectral_weight = spectral_weight_schedule(config.objective, total_steps)
    spectral = None if config.objective.spectral == "none" else config.objective.spectral

    def terms_of_shard(logits, labels, weight):
        return harmonized_terms(
            logits,
            labels,
            spatial=config.objective.spatial,  # type: ignore[arg-type]  # checked by the config
            spectral=spectral,
            weight=weight,
            include_background=config.objective.include_background,
            axis_name="data",
        )

    # each device transforms its own part of the batch; only sums leave it
    terms_of_batch = jax.shard_map(
        terms_of_shard, mesh=mesh, in_specs=(P("data"), P("data"), P()), out_specs=P()
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step)
        augment_key, dropout_key = jax.random.split(key)
        images, labels = augment(
            augment_key,
            to_unit_range(batch["image"]),
            batch["label"],
            **dataclasses.asdict(config.augment),
        )
        weight = jnp.asarray(spectral_weight(state.step), jnp.float32)

        def loss_and_rest(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": dropout_key},
            )
            terms = terms_of_batch(logits, labels, weight)
            return terms["loss"], (terms, updates.get("batch_stats", {}))

        gradients, (terms, batch_stats) = jax.grad(loss_and_rest, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if ema_params is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - config.optim.ema_decay)
        metrics = {
            **terms,
            "gradient_norm": optax.global_norm(gradients),
            "learning_rate": jnp.asarray(learning_rate(state.step)),
        }
        if spectral is not None:
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
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=(replicated(mesh), replicated(mesh)),
        donate_argnums=0,
    )


def make_count_step(
    model: nn.Module, mesh: Mesh
) -> Callable[[dict, Batch], tuple[Int[Array, "batch classes"], ...]]:
    """Returns the jitted function from variables and a batch to pixels per example and class.

    Pixels in both prediction and truth, in the truth, in the prediction: `metrics.overlap.Counts`.
    """

    def count_step(variables, batch):
        logits = model.apply(variables, to_unit_range(batch["image"]), train=False)
        classes = logits.shape[-1]
        predicted = jax.nn.one_hot(jnp.argmax(logits, -1), classes, dtype=jnp.int32)
        true = jax.nn.one_hot(batch["label"], classes, dtype=jnp.int32)
        axes = range(1, true.ndim - 1)
        return tuple(jnp.sum(mask, axis=axes) for mask in (predicted * true, true, predicted))

    return jax.jit(
        count_step,
        in_shardings=(replicated(mesh), split_batch(mesh)),
        out_shardings=replicated(mesh),
    )
