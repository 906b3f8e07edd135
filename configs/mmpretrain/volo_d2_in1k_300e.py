"""VOLO-D2 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 85.2 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_300e.py, with a learning rate of 1e-3.
"""

_base_ = [
    "./_base_/models/token_label.py",
    "./_base_/datasets/imagenet_token_label_224.py",
    "./_base_/schedules/adamw_volo_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.VOLO", arch="d2", drop_path_rate=0.2),
    head=dict(in_channels=512),
)
