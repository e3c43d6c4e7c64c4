r"""Heart chambers in cine MRI (ACDC), trained to the plateau, and tested at another centre too.

python -m experiments.study --study=experiments/studies/heart.py \
    --raw=acdc=ACDC_png,sunnybrook=Sunnybrook --workdir=studies/heart \
    --results=experiments/results/heart
"""

from spectral_jax.studies.design import Study, make_arms
from spectral_jax.training.config import default_config

# what is measured of a run; one severity, the middle one, of every corruption on every case
MEASUREMENTS = {"evaluation": {}, "calibration": {}, "robustness": {"severities": (3,)}}


def get_config():
    """What the studies of the heart share."""
    config = default_config()
    config.data.name = "acdc"
    config.data.image_size = 96
    config.model.name = "unet"
    config.model.unet.widths = (16, 32, 64, 128)
    config.objective.spatial = "dice_ce"
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.train.batch_size = 16
    config.train.epochs = 16.0
    config.train.validate_every = 1.0
    return config


def get_study() -> Study:
    return Study(
        title="Heart in cine MRI (ACDC), at the plateau",
        config=get_config(),
        arms=make_arms(("none", "paper", "midband", "twin")),
        seeds=range(100, 110),
        on=("sunnybrook",),
        measurements=MEASUREMENTS,
    )
