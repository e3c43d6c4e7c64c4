r"""Hippocampus in slices of T1 MRI (Medical Segmentation Decathlon, task 4), two parts of it.

python -m experiments.study --study=experiments/studies/hippocampus.py --small \
    --raw=decathlon=Task04_Hippocampus --workdir=studies/hippocampus
"""

from experiments.studies.design import SMALL_LIMITS, SPECTRAL, Study, make_arms
from spectral_jax.training.config import default_config


def get_study(small: bool) -> Study:
    config = default_config()
    config.data.name = "decathlon"
    config.data.image_size = 48 if small else 64
    config.model.options.widths = (16, 32, 64) if small else (32, 64, 128, 256)
    # its two parts differ in where they lie, front and back
    config.augment.flip = config.augment.quarter_turns = False
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.train.batch_size = 16
    config.train.epochs = 2.0 if small else 30.0
    config.train.validate_every = 1.0 if small else 2.0
    arms = make_arms(tuple(SPECTRAL), seeds=5, objective__spatial="dice_ce")
    for spatial in ("ce",) if small else ("ce", "dice"):
        arms |= make_arms(
            tuple(SPECTRAL),
            seeds=3 if small else 5,
            prefix=f"{spatial}-",
            objective__spatial=spatial,
        )
    return Study(
        title="Hippocampus in T1 MRI, UNet on slices",
        config=config,
        arms=arms,
        show_images=True,
        limits=SMALL_LIMITS if small else {},
    )
