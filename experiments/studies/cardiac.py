r"""Heart chambers in cine MRI (ACDC), UNet and TransUNet: the paper's headline.

python -m experiments.study --study=experiments/studies/cardiac.py --small \
    --raw=acdc=ACDC --workdir=studies/cardiac
"""

from experiments.configs import acdc_transunet
from experiments.studies.design import SMALL_LIMITS, Study, make_arms

ARMS = ("none", "paper", "midband", "mcc")
UNET = {"model__name": "unet", "model__options": {"widths": (64, 128, 256, 512, 1024)}}
SMALL_UNET = {"model__name": "unet", "model__options": {"widths": (16, 32, 64, 128)}}


def get_study(small: bool) -> Study:
    config = acdc_transunet.get_config()
    if small:
        config.data.image_size = 64
        config.optim.name = "adamw"
        config.optim.learning_rate = 3e-3
        config.train.batch_size = 16
        config.train.epochs = 4.0
        config.train.validate_every = 1.0
        arms = make_arms(ARMS, seeds=3, prefix="unet-", **SMALL_UNET)
    else:
        arms = make_arms(ARMS, seeds=5, prefix="unet-", **UNET)
        arms |= make_arms(ARMS, seeds=3, prefix="transunet-", model__name="transunet")
    return Study(
        title="Heart in cine MRI (ACDC)",
        config=config,
        arms=arms,
        limits=SMALL_LIMITS if small else {},
    )
