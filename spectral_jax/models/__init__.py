"""Segmentation networks as Flax linen modules.

Every network is used the same way::

    model = build_model("unet", num_classes=4)
    variables = model.init(key, images)                   # images: [batch, *spatial, channels]
    logits = model.apply(variables, images, train=False)  # [batch, *spatial, num_classes], float32
    logits, features = model.apply(variables, images, train=False, return_features=True)
"""

import difflib
from typing import Any

from flax import linen as nn

from spectral_jax.models.compilation import compiler_options
from spectral_jax.models.pretrained import load_imagenet21k, load_pretrained, load_transunet_torch
from spectral_jax.models.transunet import TransUNet
from spectral_jax.models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {"unet": UNet, "transunet": TransUNet}


def build_model(name: str, *, num_classes: int, **options: Any) -> nn.Module:
    """Returns the network called `name`.

    Args:
      name: a key of `MODELS`.
      num_classes: number of classes, background included; at least 2.
      **options: fields of the module, for example `widths` of `UNet`.

    Raises:
      ValueError: for an unknown name or option, or fewer than two classes.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {sorted(MODELS)}")
    if num_classes < 2:
        raise ValueError(
            f"num_classes={num_classes}, but the background counts as a class: use at least 2"
        )
    module = MODELS[name]
    fields = set(module.__dataclass_fields__) - {"parent", "name", "num_classes"}
    for option in options:
        if option not in fields:
            nearest = difflib.get_close_matches(option, fields, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {sorted(fields)}"
            raise ValueError(f"model {name!r} has no option {option!r}{hint}")
    return module(num_classes=num_classes, **options)


__all__ = [
    "MODELS",
    "TransUNet",
    "UNet",
    "build_model",
    "compiler_options",
    "load_imagenet21k",
    "load_pretrained",
    "load_transunet_torch",
]
