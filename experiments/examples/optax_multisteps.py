"""One update from four small batches: python -m experiments.examples.optax_multisteps.

What "midband" pools over the batch, it pools over four images here; `--config.train.accumulate=4`
of `experiments.train` pools over all sixteen.
"""

import jax
import optax

from experiments.examples.discs import dice_of, discs
from spectral_jax.losses import harmonized_loss
from spectral_jax.models import build_model

model = build_model("unet", num_classes=2, widths=(4, 8), norm="group")
optimizer = optax.MultiSteps(optax.adam(1e-2), every_k_schedule=4)


@jax.jit
def step(params, state, images, labels):
    def loss_fn(params):
        return harmonized_loss(model.apply(params, images), labels, spectral="midband", weight=0.1)

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


images, labels = discs(16)
params = model.init(jax.random.key(0), images[:4])
state = optimizer.init(params)
for i in range(161):
    batch = slice(i % 4 * 4, i % 4 * 4 + 4)
    params, state, loss = step(params, state, images[batch], labels[batch])
    if i % 40 == 0:
        print(f"batch {i}, update {state.gradient_step}: loss {loss:.3f}")

images, labels = discs(16, seed=1)
print(f"Dice of new images: {dice_of(model.apply(params, images), labels):.3f}")
