r"""Three-dimensional UNet on the hippocampus of the Medical Segmentation Decathlon (task 4).

spectral-jax train --config=hippocampus_3d \
    --config.data.root=Task04_Hippocampus --workdir=runs/hippocampus_3d
"""

from spectral_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "decathlon"
    config.data.patch_size = (32, 32, 32)
    config.model.name = "unet"
    config.model.unet.widths = (16, 32, 64)
    config.model.unet.norm = "instance"
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "midband"
    config.objective.weight = 0.1
    # its two parts differ in where they lie, front and back
    config.augment.flip = config.augment.quarter_turns = False
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.train.batch_size = 8
    config.train.epochs = 100.0
    config.train.validate_every = 10.0
    return config
