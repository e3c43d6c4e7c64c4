r"""`heart` with a transformer: a TransUNet of 1.1 million parameters, which two cores can train.

python -m experiments.study --study=experiments/studies/heart_transunet.py \
    --raw=acdc=ACDC_png,sunnybrook=Sunnybrook --workdir=studies/heart_transunet \
    --results=experiments/results/heart_transunet
"""

from experiments.studies import heart
from spectral_jax.studies.design import Study, make_arms


def get_study() -> Study:
    config = heart.get_config()
    config.model.name = "transunet"
    config.model.transunet.update(
        resnet_blocks=(2, 2, 2),
        resnet_width=16,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        mlp_dim=256,
        decoder_widths=(64, 64, 32, 16, 16),
    )
    return Study(
        title="Heart in cine MRI (ACDC), a small TransUNet",
        config=config,
        arms=make_arms(("none", "paper", "midband", "twin")),
        seeds=range(100, 105),
        on=("sunnybrook",),
        measurements=heart.MEASUREMENTS,
    )
