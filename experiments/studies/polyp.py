r"""Polyps in colonoscopy: trained on Kvasir-SEG, tested on CVC-ClinicDB too.

python -m experiments.study --study=experiments/studies/polyp.py --small \
    --raw=kvasir_seg=Kvasir-SEG,cvc_clinicdb=CVC-ClinicDB --workdir=studies/polyp
"""

from experiments.configs import kvasir_unet
from experiments.studies.design import SMALL_LIMITS, SPECTRAL, Study, make_arms

# at this size a set of patches takes five times as long as on the small slices of the others
SMALL_INTERACTIONS = {"interactions": {"images": 2, "pairs": 4, "contexts": 4}}


def get_study(small: bool) -> Study:
    config = kvasir_unet.get_config()
    if small:
        config.data.image_size = 96
        config.model.options.widths = (16, 32, 64, 128)
        config.optim.learning_rate = 2e-3
        config.train.batch_size = 8
        config.train.epochs = 20.0
    arms = ("none", "paper", "midband", "mcc") if small else tuple(SPECTRAL)
    return Study(
        title="Polyps in colonoscopy, Kvasir-SEG to CVC-ClinicDB",
        config=config,
        arms=make_arms(arms, seeds=3 if small else 5),
        on=("cvc_clinicdb",),
        limits=SMALL_LIMITS | SMALL_INTERACTIONS if small else {},
    )
