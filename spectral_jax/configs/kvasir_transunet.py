r"""TransUNet on polyps in colonoscopy (Kvasir-SEG).

spectral-jax train --config=kvasir_transunet \
    --config.data.root=FOLDER --workdir=runs/kvasir_transunet
"""

from spectral_jax.configs._transunet import transunet_recipe


def get_config():
    return transunet_recipe("kvasir_seg")
