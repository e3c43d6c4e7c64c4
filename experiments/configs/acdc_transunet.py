r"""TransUNet (R50-ViT-B/16) on cardiac cine MRI (ACDC), by the recipe of its reference implementation.

SGD 0.01 with momentum 0.9, L2 1e-4 and polynomial decay, 150 epochs of batch 24 at 224 pixels, and the
mean of cross-entropy and Dice over all classes, pooled over the batch; here with the spectral term beside
them, which --config.objective.spectral=none takes away. The reference starts from ImageNet-21k weights,
R50+ViT-B_16.npz: --config.model.pretrained=PATH.

python -m experiments.train --config=experiments/configs/acdc_transunet.py --config.data.root=FOLDER \
    --workdir=runs/acdc_transunet
"""

from spectral_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "acdc"
    config.data.image_size = 224
    config.model.name = "transunet"
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "paper"  # or "midband", a control, "none"
    config.objective.weight = 0.1
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.optim.weight_decay = 1e-4
    config.optim.momentum = 0.9
    config.optim.poly_power = 0.9
    config.train.batch_size = 24
    config.train.epochs = 150.0
    return config
