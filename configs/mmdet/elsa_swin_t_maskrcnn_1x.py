"""Mask R-CNN with ELSA-Swin-T on COCO, 12 epochs.

Published: 45.7 box AP, 41.1 mask AP (README of the official code, damo-cv/ELSA). Not
reproduced here.

"1x" is only the length of the schedule. As in the official runs, and unlike mmdet's plain 1x,
training images are flipped, sometimes cropped, and resized to a short side of 480 to 800. The
official runs start from an ImageNet checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

The official runs train in mixed precision: add ``--amp`` on a GPU. As in them, weight decay acts on
bias tables and ghost heads. It spares normalisation layers and position embeddings only.
"""

_base_ = [
    "./_base_/models/maskrcnn_fpn.py",
    "./_base_/datasets/coco_instance_ms.py",
    "./_base_/schedules/adamw_1x.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.ELSASwin", arch="tiny", drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
