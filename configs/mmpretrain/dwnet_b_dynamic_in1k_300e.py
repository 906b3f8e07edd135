"""Dynamic DWNet-B on ImageNet-1k, 224 pixels, 300 epochs.

Published: 83.2 % top-1 (README of the official code, Atten4Vis/DemystifyLocalViT). Not reproduced
here.

The recipe and its differences are as in dwnet_b_in1k_300e.py. The newest official code builds the
static network for this experiment. This is the dynamic network of the article and the README.
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
        spatial="dynamic",
        pad_size_divisor=1,
        out_norm="LN",
        out_indices=(3,),
        drop_path_rate=0.5,
    ),
    head=dict(in_channels=1024),
)
