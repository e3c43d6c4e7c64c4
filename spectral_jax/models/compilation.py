"""How networks are compiled, chosen by backend in this one place."""

import functools

import jax


@functools.cache
def compiler_options() -> dict[str, str | bool]:
    """Options for `jax.jit` of a function that runs a network; none are needed on accelerators.

    On CPU, XLA 0.10 hands convolutions to YNNPACK by default, where a training step of UNet takes
    up to twice as long as with Eigen, above all the gradients of kernels; matrix products and sums
    stay with YNNPACK. A jaxlib without the option gets none.
    """
    if jax.default_backend() != "cpu":
        return {}
    kinds = ("DOT", "INDIVIDUAL_DOT", "REDUCE")  # not INDIVIDUAL_CONVOLUTION
    fusions = ",".join(f"LIBRARY_FUSION_TYPE_{kind}" for kind in kinds)
    options: dict[str, str | bool] = {"xla_cpu_experimental_ynn_fusion_type": fusions}
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError:
        return {}
    return options
