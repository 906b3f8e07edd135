"""ELSA-VOLO-D3 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 85.7 % top-1 (ELSA, Zhou et al. 2021). Not reproduced here.

The recipe, its differences and our choices are as in elsa_volo_d1_in1k_300e.py, with VOLO-D3's
learning rate and drop path.
"""

_base_ = "./volo_d3_in1k_300e.py"

model = dict(backbone=dict(type="mmlocal.ELSAVOLO"))
