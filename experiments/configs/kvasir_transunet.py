r"""TransUNet on polyps in colonoscopy (Kvasir-SEG).

python -m experiments.train --config=experiments/configs/kvasir_transunet.py \
    --config.data.root=FOLDER --workdir=runs/kvasir_transunet
"""

from experiments.configs._transunet import transunet_recipe


def get_config():
    return transunet_recipe("kvasir_seg")
