"""DeiT-Ti on ImageNet-1k, 224 pixels, 310 epochs: the baseline of ghost_deit_ti_in1k_300e.py.

Published: the ghost head gains 3.7 % top-1 over DeiT-Ti (ELSA, Zhou et al. 2021). Not reproduced
here.

This is mmpretrain's DeiT-Ti, class token included, in the recipe of ghost_deit_ti_in1k_300e.py. The
two configs differ in these points:

=====================  ==================  ==========================
config                 this file           ghost_deit_ti_in1k_300e.py
=====================  ==================  ==========================
ghost head             no                  yes
pooling                class token         mean of all tokens
epsilon of LayerNorm   1e-6                1e-5
=====================  ==================  ==========================
"""

_base_ = "./ghost_deit_ti_in1k_300e.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="VisionTransformer",
        arch="deit-tiny",
        img_size=224,
        patch_size=16,
        drop_path_rate=0.1,
        init_cfg=[
            dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
            dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
        ],
    ),
    neck=None,  # the backbone returns the class token
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={"cls_token": dict(decay_mult=0.0), "pos_embed": dict(decay_mult=0.0)}
    )
)
