"""The batch split over devices: JAX_NUM_CPU_DEVICES=4 python -m experiments.examples.sharded."""

import jax
import optax

from experiments.examples.discs import discs
from spectral_jax.losses import harmonized_loss
from spectral_jax.models import build_model

model = build_model("unet", num_classes=2, widths=(4, 8), norm="group")
optimizer = optax.adam(1e-2)
mesh = jax.make_mesh((jax.device_count(),), ("data",))
replicated, split = jax.NamedSharding(mesh, jax.P()), jax.NamedSharding(mesh, jax.P("data"))


# under plain jit the Fourier transform would gather all masks on every device; here they stay
@jax.shard_map(mesh=mesh, in_specs=(jax.P(), jax.P("data"), jax.P("data")), out_specs=jax.P())
def loss_fn(params, images, labels):
    logits = model.apply(params, images)
    return harmonized_loss(logits, labels, spectral="midband", axis_name="data")


@jax.jit
def step(params, state, images, labels):
    loss, gradients = jax.value_and_grad(loss_fn)(params, images, labels)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss


images, labels = discs(16)
params = model.init(jax.random.key(0), images)
alone = harmonized_loss(model.apply(params, images), labels, spectral="midband")
print(f"loss on one device {alone:.5f}")
params, batch = jax.device_put((params, (images, labels)), (replicated, split))
state = optimizer.init(params)
for i in range(31):
    params, state, loss = step(params, state, *batch)
    if i % 15 == 0:
        print(f"step {i}: loss {loss:.5f} on {mesh.size} devices")
