"""The loss in a loop of nothing but JAX: python -m experiments.examples.bare_jax."""

import jax
import jax.numpy as jnp

from experiments.examples.discs import dice_of, discs
from spectral_jax.losses import harmonized_loss


def network(kernels, x):
    for kernel in kernels:
        x = jax.lax.conv_general_dilated(
            jax.nn.relu(x), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    return x


@jax.jit
def step(kernels, velocity, images, labels):
    def loss_fn(kernels):
        return harmonized_loss(network(kernels, images), labels, spectral="midband", weight=0.1)

    loss, gradients = jax.value_and_grad(loss_fn)(kernels)
    velocity = jax.tree.map(lambda v, gradient: 0.9 * v + gradient, velocity, gradients)
    kernels = jax.tree.map(lambda kernel, v: kernel - 0.1 * v, kernels, velocity)
    return kernels, velocity, loss


shapes = [(5, 5, 1, 8), (5, 5, 8, 8), (1, 1, 8, 2)]
kernels = [jax.nn.initializers.he_normal()(jax.random.key(1), shape) for shape in shapes]
velocity = jax.tree.map(jnp.zeros_like, kernels)
images, labels = discs(16)
for i in range(41):
    kernels, velocity, loss = step(kernels, velocity, images, labels)
    if i % 20 == 0:
        print(f"step {i}: loss {loss:.3f}")

images, labels = discs(16, seed=1)
print(f"Dice of new images: {dice_of(network(kernels, images), labels):.3f}")
