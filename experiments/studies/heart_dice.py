r"""The paper's own spatial loss, Dice alone, with the weights that `heart_dice_sweep` chose.

python -m experiments.study --study=experiments/studies/heart_dice.py \
    --raw=acdc=ACDC_png,sunnybrook=Sunnybrook --workdir=studies/heart_dice \
    --results=experiments/results/heart_dice
"""

from experiments.studies import heart
from spectral_jax.studies.design import Study, make_arms

# by the rule of the registration from the sweep; None until it has been run
CHOSEN_WEIGHTS: dict[str, float | None] = {"paper": None, "midband": None}


def get_study() -> Study:
    config = heart.get_config()
    config.objective.spatial = "dice"
    arms = make_arms(("none",))
    for name, weight in CHOSEN_WEIGHTS.items():
        if weight is None:
            raise ValueError(f"{__file__}: no weight for {name} yet: run heart_dice_sweep.py first")
        arms |= make_arms((name,), weight=weight)
    return Study(
        title="Heart in cine MRI (ACDC), Dice alone",
        config=config,
        arms=arms,
        seeds=range(100, 108),
        on=("sunnybrook",),
        measurements=heart.MEASUREMENTS,
    )
