"""Mask R-CNN with ELSA-Swin-T on COCO, 36 epochs.

Published: 47.5 box AP, 42.7 mask AP (README of the official code, damo-cv/ELSA). Not
reproduced here.

Augmentation, weight decay, the start from an ImageNet checkpoint and ``--amp`` are as in
elsa_swin_t_maskrcnn_1x.py.
"""

_base_ = [
    "./_base_/models/maskrcnn_fpn.py",
    "./_base_/datasets/coco_instance_ms.py",
    "./_base_/schedules/adamw_3x.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.ELSASwin", arch="tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
