r"""TransUNet on organs in abdominal CT (Synapse, also called BTCV).

spectral-jax train --config=synapse_transunet \
    --config.data.root=FOLDER --workdir=runs/synapse_transunet
"""

from spectral_jax.configs._transunet import transunet_recipe


def get_config():
    return transunet_recipe("synapse")
