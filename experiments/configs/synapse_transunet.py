r"""TransUNet on organs in abdominal CT (Synapse, also called BTCV).

python -m experiments.train --config=experiments/configs/synapse_transunet.py \
    --config.data.root=FOLDER --workdir=runs/synapse_transunet
"""

from experiments.configs._transunet import transunet_recipe


def get_config():
    return transunet_recipe("synapse")
