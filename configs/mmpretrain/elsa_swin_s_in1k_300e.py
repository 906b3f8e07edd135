"""ELSA-Swin-S on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 83.5 % top-1 (README of the official code, damo-cv/ELSA). Not reproduced here.

The recipe and its differences are as in elsa_swin_t_in1k_300e.py.
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_224.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmlocal.ELSASwin",
        arch="small",
        fit_window=True,
        out_indices=(3,),
        drop_path_rate=0.3,
    ),
    head=dict(in_channels=768),
)
