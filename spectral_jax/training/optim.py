"""The length of a run, what changes over its steps, and optimisers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from spectral_jax.training.config import MANY, Config, ConfigError, OptimConfig


def count_steps(config: Config, examples: int) -> int:
    """How many steps a run has, with so many training examples.

    Raises:
      ConfigError: if they are too many, or over before the learning rate starts again.
    """
    epochs = config.train.epochs
    steps = config.train.steps or math.ceil(epochs * examples / config.train.batch_size)
    if steps > MANY:
        raise ConfigError(
            f"config.train.epochs={epochs:g}: {steps:g} steps of "
            f"{config.train.batch_size} examples; expected at most {MANY}"
        )
    if config.optim.restarts and config.optim.restarts[-1] >= steps:
        raise ConfigError(
            f"config.optim.restarts={config.optim.restarts}: the run has {steps} steps; expected "
            "fewer before the last restart"
        )
    return steps


def learning_rate_schedule(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step; it starts again at each of the `restarts`."""
    ends = (*config.restarts, total_steps)
    lengths = [end - start for start, end in zip((0, *config.restarts), ends, strict=True)]
    # the last is of no length where only the optimiser's state is asked for
    parts = [_learning_rate(config, max(1, steps)) for steps in lengths]
    return optax.join_schedules(parts, config.restarts) if config.restarts else parts[0]


def _learning_rate(config: OptimConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step, from one start to the end.

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


def spectral_weight_schedule(config: Config, total_steps: int) -> optax.Schedule:
    """Weight of the spectral loss by step: rises linearly over the ramp, then stays.

    The ramp is a share of the steps up to the first restart of the learning rate.
    """
    first_steps = (*config.optim.restarts, total_steps)[0]
    ramp = max(1, round(config.objective.ramp * first_steps))
    return optax.linear_schedule(0.0, config.objective.weight, ramp)


def same_schedules(one: Config, other: Config, examples: int, steps: int) -> bool:
    """Whether the first steps of two runs have the same learning rate and spectral weight."""
    at = np.arange(steps)
    schedules = [
        (
            learning_rate_schedule(config.optim, count_steps(config, examples)),
            spectral_weight_schedule(config, count_steps(config, examples)),
        )
        for config in (one, other)
    ]
    return all(np.array_equal(before(at), now(at)) for before, now in zip(*schedules, strict=True))


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
