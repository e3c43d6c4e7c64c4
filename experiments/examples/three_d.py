"""The loss of volumes: python -m experiments.examples.three_d."""

import jax
import optax

from experiments.examples.discs import dice_of, discs
from spectral_jax.losses import harmonized_loss, soft_band
from spectral_jax.models import build_model

model = build_model("unet", num_classes=2, widths=(4, 8), norm="group")
optimizer = optax.adam(1e-2)
# a band of your own: the radius is in cycles per volume, the same along all three axes
spectral = {"band": soft_band(centre_cycles=4.0), "normalisation": "concordance"}


@jax.jit
def step(params, state, images, labels):
    def loss_fn(params):
        return harmonized_loss(model.apply(params, images), labels, spectral=spectral, weight=0.1)

    loss, gradients = jax.value_and_grad(loss_fn)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss


images, labels = discs(2, size=16, dimensions=3)
params = model.init(jax.random.key(0), images)
state = optimizer.init(params)
for i in range(41):
    params, state, loss = step(params, state, images, labels)
    if i % 20 == 0:
        print(f"step {i}: loss {loss:.3f}")

images, labels = discs(2, size=16, dimensions=3, seed=1)
print(f"Dice of new volumes: {dice_of(model.apply(params, images), labels):.3f}")
