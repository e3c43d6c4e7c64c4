r"""Three-dimensional UNet on a folder of nnU-Net: `dataset.json`, `imagesTr`, `labelsTr`.

spectral-jax train --config=nnunet --config.data.root=nnUNet_raw/Dataset004_Hippocampus \
    --workdir=runs/hippocampus

Pictures and thin stacks: --config.data.patch_size='()' --config.data.image_size=256.
"""

from spectral_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "nnunet"
    config.data.patch_size = (32, 96, 96)
    config.model.name = "unet"
    config.model.unet.widths = (32, 64, 128, 256)
    config.model.unet.norm = "instance"
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "midband"
    config.objective.weight = 0.1
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.train.batch_size = 2
    config.train.epochs = 300.0
    config.train.validate_every = 10.0
    return config
