"""DeiT-Ti without class token and with ELSA's ghost head, on ImageNet-1k, 224 pixels, 310 epochs.

Published: +3.7 % top-1 over DeiT-Ti (ELSA, Zhou et al. 2021). Not reproduced here. The baseline in
the same recipe is deit_ti_in1k_300e.py.

The experiment is in appendix C of the article. The ghost head doubles the heads of global
attention, after the softmax. No code was released for it. Three things are therefore our choice:

* The form and start of the static matrices: see ``mmlocal.layers.GhostAttention``.
* Average pooling of all tokens in place of the class token.
* The recipe of elsa_swin_t_in1k_300e.py, with DeiT-Ti's drop path of 0.1. DeiT's own recipe has 5
  epochs of warm-up in place of 20, repeated augmentation and no clipping of gradients. LayerNorm
  has an epsilon of 1e-5 here, and 1e-6 in DeiT.
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_224.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.GhostDeiT", arch="tiny", drop_path_rate=0.1),
    head=dict(in_channels=192),
)
