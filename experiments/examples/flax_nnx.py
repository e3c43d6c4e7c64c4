"""The loss with Flax NNX: python -m experiments.examples.flax_nnx."""

import optax
from flax import nnx

from experiments.examples.discs import dice_of, discs
from spectral_jax.losses import harmonized_loss


@nnx.jit
def step(model, optimizer, images, labels):
    def loss_fn(model):
        return harmonized_loss(model(images), labels, spectral="midband", weight=0.1)

    loss, gradients = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, gradients)
    return loss


rngs = nnx.Rngs(0)
convolutions = [nnx.Conv(channels, 8, (5, 5), rngs=rngs) for channels in (1, 8)]
head = nnx.Linear(8, 2, rngs=rngs)
model = nnx.Sequential(convolutions[0], nnx.relu, convolutions[1], nnx.relu, head)
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
images, labels = discs(16)
for i in range(41):
    loss = step(model, optimizer, images, labels)
    if i % 20 == 0:
        print(f"step {i}: loss {loss:.3f}")

images, labels = discs(16, seed=1)
print(f"Dice of new images: {dice_of(model(images), labels):.3f}")
