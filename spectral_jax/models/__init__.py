"""Segmentation networks as Flax linen modules.

Every network is used the same way::

    model = build_model("unet", num_classes=4)
    variables = model.init(key, images)                   # images: [batch, *spatial, channels]
    logits = model.apply(variables, images, train=False)  # [batch, *spatial, num_classes], float32
    logits, features = model.apply(variables, images, train=False, return_features=True)
"""

from typing import Any

from flax import linen as nn

from spectral_jax.models.compilation import compiler_options, suited
from spectral_jax.models.pretrained import load_imagenet21k, load_pretrained, load_transunet_torch
from spectral_jax.models.transunet import TransUNet
from spectral_jax.models.unet import UNet
from spectral_jax.options import read_options

MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "transunet": TransUNet}


def build_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """Returns the network called `name`.

    Args:
      name: a key of `MODELS`.
      num_classes: number of classes, background included; at least 2.
      **options: fields of the module, for example `widths` of `UNet`.

    Raises:
      ValueError: for an unknown name or option, one of another type, or fewer than two classes.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {sorted(MODELS)}")
    if num_classes < 2:
        raise ValueError(
            f"num_classes={num_classes}, but the background counts as a class: use at least 2"
        )
    module = MODELS[name]
    fields = {
        field.name: field.type
        for field in module.__dataclass_fields__.values()
        if field.name not in ("parent", "name", "num_classes")
    }
    typed = read_options(f"model {name!r}", options, fields, ValueError)
    return module(num_classes=num_classes, **typed)


__all__ = [
    "MODELS",
    "TransUNet",
    "UNet",
    "build_model",
    "compiler_options",
    "load_imagenet21k",
    "load_pretrained",
    "load_transunet_torch",
    "suited",
]
