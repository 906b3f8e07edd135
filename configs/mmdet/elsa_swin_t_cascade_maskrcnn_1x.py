"""Cascade Mask R-CNN with ELSA-Swin-T on COCO, 12 epochs.

Published: 49.8 box AP, 43.0 mask AP (README of the official code, damo-cv/ELSA). Not
reproduced here.

The drop path rate of 0.0 is the official one. Swin's config has it too in this setting.

Augmentation, weight decay, the start from an ImageNet checkpoint and ``--amp`` are as in
elsa_swin_t_maskrcnn_1x.py.
"""

_base_ = [
    "./_base_/models/cascade_maskrcnn_fpn.py",
    "./_base_/datasets/coco_instance_ms.py",
    "./_base_/schedules/adamw_1x.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.ELSASwin", arch="tiny", drop_path_rate=0.0),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
