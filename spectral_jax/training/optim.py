"""Learning-rate schedules and optimisers."""

import jax
import jax.numpy as jnp
import optax

from spectral_jax.training.config import ObjectiveConfig, OptimConfig


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step.

    For "sgd" it is TransUNet's, `rate · (1 - max(step - 1, 0) / total)^power`: its trainer sets
    the rate after each step, so that the first two share one.
    """
    if config.name == "sgd":

        def poly(step):
            done = jnp.maximum(step - 1, 0) / total_steps
            return config.learning_rate * (1 - done) ** config.poly_power

        return poly
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=round(config.warmup * total_steps),
        decay_steps=total_steps,
    )


def spectral_weight_schedule(config: ObjectiveConfig, total_steps: int) -> optax.Schedule:
    """Weight of the spectral loss by step: rises linearly over the ramp, then stays."""
    return optax.linear_schedule(0.0, config.weight, max(1, round(config.ramp * total_steps)))


def ema_decay_schedule(config: OptimConfig) -> optax.Schedule:
    """Decay of the running mean of parameters by step: `min(decay, (1 + step) / (10 + step))`.

    The warm-up of TensorFlow's `ExponentialMovingAverage` (`num_updates`): the mean forgets the
    random start at once, however near to 1 the decay is and however short the run.
    """
    return lambda step: jnp.minimum(config.ema_decay, (1 + step) / (10 + step))


def build_optimizer(config: OptimConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimiser that `config` describes."""
    schedule = learning_rate_schedule(config, total_steps)
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    if config.name == "sgd":
        return optax.chain(
            clip,
            optax.add_decayed_weights(config.weight_decay),
            optax.trace(config.momentum),
            optax.scale_by_learning_rate(schedule),
        )
    return optax.chain(
        clip,
        optax.adamw(
            schedule,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
        ),
    )
