"""Cascade Mask R-CNN with ELSA-Swin-B on COCO, 36 epochs.

Our extension: the paper trains no detector on ELSA-Swin-B. Everything but the backbone is as in
elsa_swin_s_cascade_maskrcnn_3x.py, including the drop path rate of 0.75.

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
    backbone=dict(type="mmlocal.ELSASwin", arch="base", drop_path_rate=0.75),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
