"""Grey and white matter in real MRI slices, in a few minutes on two CPU cores.

spectral-jax train --config=quickstart --workdir=runs/quickstart
"""

from spectral_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "mni152"
    config.data.image_size = 128
    config.model.name = "unet"
    config.model.unet.widths = (16, 32, 64, 128)
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "midband"
    config.objective.weight = 0.1
    config.augment.quarter_turns = False
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.train.batch_size = 8
    config.train.epochs = 20.0
    # once, at the end, when the rate is 0: eight slices are too few to choose a checkpoint by
    config.train.validate_every = 20.0
    return config
