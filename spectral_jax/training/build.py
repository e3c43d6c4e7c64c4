"""What a run is built of: the network, its first training state, and where that lies."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from spectral_jax.data.labels import Labels
from spectral_jax.losses.activation import Activation
from spectral_jax.models import MODELS, build_model
from spectral_jax.training import sharding
from spectral_jax.training.config import Config, as_keywords
from spectral_jax.training.optim import build_optimizer
from spectral_jax.training.state import TrainState, create_state


@dataclasses.dataclass(frozen=True)
class Built:
    """A network and its training state, before there are any arrays.

    Attributes:
      model: the module.
      make_state: from a random key to the first state, for `jax.jit`.
      shapes: a state with the shape and dtype of each array in its place.
      layout: a state with the sharding of each array in its place.
    """

    model: nn.Module
    make_state: Callable[[jax.Array], TrainState]
    shapes: TrainState
    layout: TrainState

    def first_state(self, key: jax.Array) -> TrainState:
        """A state with random parameters, laid out on the mesh."""
        return jax.jit(self.make_state, out_shardings=self.layout)(key)


def build(config: Config, labels: Labels, channels: int, mesh: Mesh, total_steps: int = 1) -> Built:
    """Builds the network that `config` describes, with the state that its training begins from.

    Args:
      config: of the run.
      labels: of its data set.
      channels: of its images.
      mesh: of the devices.
      total_steps: of the run; the learning rate depends on it, what a checkpoint holds does not.

    Raises:
      ValueError: for options that the network or the optimiser does not take.
    """
    model = make_model(config, labels)
    optimizer = build_optimizer(config.optim, total_steps)
    image_shape = (*config.data.example_size, channels)
    ema = config.optim.ema_decay > 0

    def make_state(key: jax.Array) -> TrainState:
        return create_state(model, optimizer, key, image_shape, ema=ema)

    shapes = jax.eval_shape(make_state, jax.random.key(0))
    return Built(model, make_state, shapes, sharding.split_parameters(shapes, mesh))


def make_model(config: Config, labels: Labels) -> nn.Module:
    """The network alone."""
    options = as_keywords(config.model.options)
    if config.model.bfloat16:
        options["dtype"] = jnp.bfloat16
    module = MODELS.get(config.model.name)
    if module is not None and "image_size" in module.__dataclass_fields__:
        options.setdefault("image_size", config.data.example_size[-1])
    return build_model(config.model.name, num_classes=channels_out(config, labels), **options)


def channel_classes(activation: Activation, classes: Sequence[str]) -> tuple[str, ...]:
    """The class of each channel of the logits: with "sigmoid" the background has none."""
    return tuple(classes if activation == "softmax" else classes[1:])


def channels_out(config: Config, labels: Labels) -> int:
    """How many logits a pixel has: with "sigmoid" the background has none."""
    sigmoid = config.model.activation_for(labels.overlapping) == "sigmoid"
    return labels.classes if sigmoid else labels.classes + 1
