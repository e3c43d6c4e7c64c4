r"""TransUNet on cardiac cine MRI (ACDC).

spectral-jax train --config=acdc_transunet \
    --config.data.root=FOLDER --workdir=runs/acdc_transunet
"""

from spectral_jax.configs._transunet import transunet_recipe


def get_config():
    return transunet_recipe("acdc")
