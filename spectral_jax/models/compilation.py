"""How networks are compiled, chosen by backend in this one place."""

import functools

import jax
from flax import linen as nn

TPU_LANES = 128  # numbers in a row of a register, and rows and columns of a matrix unit


@functools.cache
def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """Options for `jax.jit` of a function that runs a network; none are needed on accelerators.

    Args:
      platform: to compile for; None for JAX's default.

    On CPU, XLA 0.10 hands convolutions to YNNPACK by default, where a training step of UNet takes
    up to twice as long as with Eigen, above all the gradients of kernels; matrix products and sums
    stay with YNNPACK. A jaxlib without the option gets none.
    """
    if (platform or jax.default_backend()) != "cpu":
        return {}
    kinds = ("DOT", "INDIVIDUAL_DOT", "REDUCE")  # not INDIVIDUAL_CONVOLUTION
    fusions = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
    options: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": fusions}
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def suited(model: nn.Module, platform: str) -> nn.Module:
    """The network in the form that a platform runs fastest; parameters and values are the same."""
    if platform == "tpu" and "lanes" in model.__dataclass_fields__:
        return model.clone(lanes=TPU_LANES)
    return model
