r"""Does a spectral term raise the end point, or only the speed? Hippocampus, schedules of 1 to 16.

python -m experiments.study --study=experiments/studies/hippocampus_schedules.py \
    --raw=decathlon=Task04_Hippocampus --workdir=studies/hippocampus_schedules \
    --results=experiments/results/hippocampus_schedules
"""

from spectral_jax.studies.design import Changes, Study, make_arms
from spectral_jax.training.config import default_config

EPOCHS = (1, 2, 4, 8, 16)


def get_study() -> Study:
    config = default_config()
    config.data.name = "decathlon"
    config.data.image_size = 48
    config.model.unet.widths = (16, 32, 64)
    # its two parts differ in where they lie, front and back
    config.augment.flip = config.augment.quarter_turns = False
    config.objective.spatial = "dice_ce"
    config.optim.name = "adamw"
    config.optim.learning_rate = 3e-3
    config.train.batch_size = 16
    config.train.validate_every = 1.0
    arms: dict[str, Changes] = {}
    for epochs in EPOCHS:
        arms |= make_arms(
            ("none", "midband", "twin"), suffix=f"-{epochs}", train__epochs=float(epochs)
        )
    return Study(
        title="Hippocampus in T1 MRI, schedules of 1 to 16 epochs",
        config=config,
        arms=arms,
        seeds=range(100, 108),
        show_images=True,
    )
