r"""UNet on cardiac cine MRI (ACDC): right ventricle, myocardium, left ventricle.

`data.root` holds `train`, `val` and `test`, each with `images` and `masks` of slices named
`<patient>_<frame>_slice_<number>`; the slices of a patient's frame are scored as a volume.

spectral-jax train --config=acdc_unet --config.data.root=ACDC_png \
    --workdir=runs/acdc_unet
"""

from spectral_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 224
    config.data.options.classes = (
        "background",
        "right ventricle",
        "myocardium",
        "left ventricle",
    )
    config.data.options.case_pattern = r"(?P<case>.+)_slice_(?P<slice>\d+)"
    config.model.name = "unet"
    config.model.unet.widths = (64, 128, 256, 512, 1024)
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "paper"
    config.objective.weight = 0.1
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.01
    config.train.batch_size = 24
    config.train.epochs = 150.0
    config.train.validate_every = 5.0
    return config
