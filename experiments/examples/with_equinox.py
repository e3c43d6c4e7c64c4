"""The loss with Equinox (the extra `examples`): python -m experiments.examples.with_equinox."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.examples.discs import dice_of, discs
from spectral_jax.losses import harmonized_loss

first, second, head = jax.random.split(jax.random.key(0), 3)
relu = eqx.nn.Lambda(jax.nn.relu)
one, two = (eqx.nn.Conv2d(c, 8, 5, padding=2, key=key) for c, key in ((1, first), (8, second)))
model = eqx.nn.Sequential([one, relu, two, relu, eqx.nn.Conv2d(8, 2, 1, key=head)])
optimizer = optax.adam(1e-2)


def logits_of(model, images):  # Equinox has no batch and channels first, the loss channels last
    return jnp.moveaxis(jax.vmap(model)(jnp.moveaxis(images, -1, 1)), 1, -1)


@eqx.filter_jit
def step(model, state, images, labels):
    def loss_fn(model):
        return harmonized_loss(logits_of(model, images), labels, spectral="midband", weight=0.1)

    loss, gradients = eqx.filter_value_and_grad(loss_fn)(model)
    updates, state = optimizer.update(gradients, state)
    return eqx.apply_updates(model, updates), state, loss


state = optimizer.init(eqx.filter(model, eqx.is_array))
for i in range(41):
    model, state, loss = step(model, state, *discs(16))
    if i % 20 == 0:
        print(f"step {i}: loss {loss:.3f}")

images, labels = discs(16, seed=1)
print(f"Dice of new images: {dice_of(logits_of(model, images), labels):.3f}")
