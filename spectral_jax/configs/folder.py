"""Your own pictures and masks; see `spectral_jax/data/datasets/folder.py` for the layout.

spectral-jax train --config=folder --config.data.root=MY_PICTURES \
    --workdir=runs/mine

For more than two classes, write their names to MY_PICTURES/classes.txt (one a line, background
first); the masks hold class numbers then.

It is made for a first result on a CPU: a small network, small pictures, and as many steps for ten
pictures as for ten thousand. A larger one on a GPU: --config.data.image_size=256
--config.model.unet.widths='(32,64,128,256,512)' --config.train.steps=10000.
"""

from spectral_jax.training.config import default_config


def get_config():
    config = default_config()
    config.data.name = "folder"
    config.data.image_size = 128
    config.data.options.threshold = 127  # of two classes: brighter is foreground
    config.data.options.case_pattern = ""  # groups slices into volumes
    config.model.unet.widths = (16, 32, 64, 128)
    config.objective.spatial = "dice_ce"
    config.objective.spectral = "midband"
    config.optim.name = "adamw"
    config.optim.learning_rate = 1e-3
    config.train.batch_size = 8
    config.train.epochs, config.train.steps = 0.0, 600
    return config
