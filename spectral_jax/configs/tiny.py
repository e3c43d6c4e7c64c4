"""A network and a data set small enough to try a change in seconds."""

from spectral_jax.configs import quickstart


def get_config():
    config = quickstart.get_config()
    config.data.image_size = 64
    config.model.unet.widths = (4, 8)
    config.train.epochs = 2.0
    config.train.validate_every = 1.0
    return config
