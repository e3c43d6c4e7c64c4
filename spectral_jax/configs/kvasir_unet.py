r"""UNet on polyps in colonoscopy (Kvasir-SEG), to be tested on CVC-ClinicDB too.

spectral-jax train --config=kvasir_unet \
    --config.data.root=Kvasir-SEG --workdir=runs/kvasir_unet
spectral-jax evaluate --workdir=runs/kvasir_unet --on=kvasir_seg,cvc_clinicdb=CVC-ClinicDB
"""

from spectral_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "kvasir_seg"
    config.data.image_size = 224
    config.model.name = "unet"
    config.model.unet.widths = (64, 128, 256, 512, 1024)
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "midband"
    config.objective.weight = 0.1
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.train.batch_size = 16
    config.train.epochs = 100.0
    return config
