r"""Lungs in chest X-rays: trained on Shenzhen, tested on Montgomery County too. Not registered.

python -m experiments.study --study=experiments/studies/lungs.py \
    --raw=montgomery_shenzhen=CHEST_XRAYS --workdir=studies/lungs
"""

from spectral_jax.studies.design import SPECTRAL, Study, make_arms
from spectral_jax.training.config import default_config


def get_study() -> Study:
    config = default_config()
    config.data.name = "montgomery_shenzhen"
    config.data.options.site = "shenzhen"
    config.data.image_size = 256
    config.model.unet.widths = (32, 64, 128, 256, 512)
    config.augment.quarter_turns = False
    config.objective.spatial = "dice_ce"
    config.optim.name = "adamw"
    config.optim.learning_rate = 2e-3
    config.train.batch_size = 8
    config.train.epochs = 40.0
    config.train.validate_every = 4.0
    return Study(
        title="Lungs in chest X-rays, Shenzhen to Montgomery",
        config=config,
        arms=make_arms(tuple(SPECTRAL)),
        seeds=range(5),
        on=("montgomery_shenzhen",),
        measurements={"evaluation": {}, "calibration": {}, "robustness": {}},
    )
