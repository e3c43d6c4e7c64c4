"""TransUNet (R50-ViT-B/16) by the recipe of its reference implementation.

SGD 0.01 with momentum 0.9, L2 1e-4 and polynomial decay, 150 epochs of batch 24 at 224 pixels, and
the mean of cross-entropy and Dice over all classes, pooled over the batch; beside them the spectral
term, which --config.objective.spectral=none takes away. The reference starts from ImageNet-21k
weights, R50+ViT-B_16.npz: --config.model.pretrained=PATH.
"""

from ml_collections import ConfigDict

from spectral_jax.training.config import default_config


def transunet_recipe(dataset: str) -> ConfigDict:
    """The recipe for a data set."""
    config = default_config()
    config.data.name = dataset
    config.data.image_size = 224
    config.model.name = "transunet"
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "paper"
    config.objective.weight = 0.1
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.momentum = 0.9
    config.optim.weight_decay = 1e-4
    config.optim.poly_power = 0.9
    config.train.batch_size = 24
    config.train.epochs = 150.0
    return config
