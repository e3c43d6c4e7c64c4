r"""Polyps in colonoscopy: trained on Kvasir-SEG, tested on CVC-ClinicDB too. Not registered.

python -m experiments.study --study=experiments/studies/polyp.py \
    --raw=kvasir_seg=Kvasir-SEG,cvc_clinicdb=CVC-ClinicDB --workdir=studies/polyp
"""

from spectral_jax.configs import kvasir_unet
from spectral_jax.studies.design import SPECTRAL, Study, make_arms


def get_study() -> Study:
    return Study(
        title="Polyps in colonoscopy, Kvasir-SEG to CVC-ClinicDB",
        config=kvasir_unet.get_config(),
        arms=make_arms(tuple(SPECTRAL)),
        seeds=range(10),
        on=("cvc_clinicdb",),
        measurements={"evaluation": {}, "calibration": {}, "robustness": {}},
    )
