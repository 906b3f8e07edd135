"""DWNet-B with inhomogeneous dynamic convolutions on ImageNet-1k, 224 pixels, 300 epochs.

Published: 83.4 % top-1 (article, Han et al. 2022). We recall this figure, and could not check it.
Not reproduced here. The authors published no weights.

The recipe and its differences are as in dwnet_b_in1k_300e.py. The official script of this
experiment names the settings of the dynamic network by mistake.
"""

_base_ = "./dwnet_b_in1k_300e.py"

model = dict(backbone=dict(spatial="inhomogeneous"))
