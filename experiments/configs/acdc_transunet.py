r"""TransUNet on cardiac cine MRI (ACDC).

python -m experiments.train --config=experiments/configs/acdc_transunet.py \
    --config.data.root=FOLDER --workdir=runs/acdc_transunet
"""

from experiments.configs._transunet import transunet_recipe


def get_config():
    return transunet_recipe("acdc")
