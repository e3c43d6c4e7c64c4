r"""The paper's own spatial loss, Dice alone: which weight? On validation, for `heart_dice`.

python -m experiments.study --study=experiments/studies/heart_dice_sweep.py \
    --raw=acdc=ACDC_png --workdir=studies/heart_dice_sweep \
    --results=experiments/results/heart_dice_sweep
"""

from experiments.studies import heart
from spectral_jax.studies.design import Study, make_arms

WEIGHTS = {"paper": (0.1, 1.0), "midband": (0.1, 0.3, 1.0)}


def get_study() -> Study:
    config = heart.get_config()
    config.objective.spatial = "dice"
    arms = make_arms(("none",))
    for name, weights in WEIGHTS.items():
        for weight in weights:
            arms |= make_arms((name,), weight=weight, suffix=f"-{weight:g}")
    return Study(
        title="Heart in cine MRI (ACDC), Dice alone: weights on validation",
        config=config,
        arms=arms,
        seeds=range(200, 203),
        split="validation",
    )
