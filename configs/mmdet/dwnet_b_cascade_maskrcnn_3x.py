"""Cascade Mask R-CNN with DWNet-B on COCO, 36 epochs.

Published: 51.0 box AP, 44.1 mask AP (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe, SyncBN, padding, weight decay and the start from an ImageNet checkpoint are as in
dwnet_t_cascade_maskrcnn_3x.py, with a drop path of 0.3.
"""

_base_ = "./dwnet_t_cascade_maskrcnn_3x.py"

model = dict(
    backbone=dict(arch="base", drop_path_rate=0.3),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
