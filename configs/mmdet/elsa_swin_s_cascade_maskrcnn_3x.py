"""Cascade Mask R-CNN with ELSA-Swin-S on COCO, 36 epochs.

Published: 52.3 box AP, 45.2 mask AP (README of the official code, damo-cv/ELSA). Not
reproduced here.

The drop path rate of 0.75 is the official one; Swin-S trains with 0.2 in the same setting.

Augmentation, weight decay, the start from an ImageNet checkpoint and ``--amp`` are as in
elsa_swin_t_maskrcnn_1x.py.
"""

_base_ = [
    "./_base_/models/cascade_maskrcnn_fpn.py",
    "./_base_/datasets/coco_instance_ms.py",
    "./_base_/schedules/adamw_3x.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.ELSASwin", arch="small", drop_path_rate=0.75),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
