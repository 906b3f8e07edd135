"""Cascade Mask R-CNN with dynamic DWNet-T on COCO, 36 epochs.

Published: 50.5 box AP, 43.7 mask AP (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe, SyncBN, padding, weight decay and the start from an ImageNet checkpoint are as in
dwnet_t_cascade_maskrcnn_3x.py.
"""

_base_ = [
    "./_base_/models/cascade_maskrcnn_fpn.py",
    "./_base_/datasets/coco_instance_ms.py",
    "./_base_/schedules/adamw_3x.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.DWNet", arch="tiny", spatial="dynamic", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
