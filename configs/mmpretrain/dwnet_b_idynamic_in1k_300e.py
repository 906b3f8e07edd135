"""DWNet-B with inhomogeneous dynamic convolutions on ImageNet-1k, 224 pixels, 300 epochs.

Published: 83.4 % top-1 (article, Han et al. 2022). We recall this figure, and could not check it.
Not reproduced here. The authors published no weights.

The recipe and its differences are as in dwnet_b_in1k_300e.py. The official script of this
experiment names the settings of the dynamic network by mistake.
"""

_base_ = [
    "./_base_/models/pooled_linear_mixed.py",
    "./_base_/datasets/imagenet_swin_224.py",
    "./_base_/schedules/adamw_dwnet_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmlocal.DWNet",
        arch="base",
        spatial="inhomogeneous",
        pad_size_divisor=1,
        out_norm="LN",
        out_indices=(3,),
        drop_path_rate=0.5,
    ),
    head=dict(in_channels=1024),
)
