"""DWNet-T with inhomogeneous dynamic convolutions on ImageNet-1k, 224 pixels, 300 epochs.

Published: 81.8 % top-1 (article, Han et al. 2022). We recall this figure, and could not check it.
Not reproduced here. The authors published no weights.

The recipe and its differences are as in dwnet_t_in1k_300e.py, but the official run is in full
precision. The newest official script accumulates two steps of 8 GPUs with 64 images each. Here a
step has the same 1024 images, without accumulation.
"""

_base_ = "./dwnet_t_in1k_300e.py"

model = dict(backbone=dict(spatial="inhomogeneous"))
