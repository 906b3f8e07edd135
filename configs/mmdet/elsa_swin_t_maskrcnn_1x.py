"""Mask R-CNN with ELSA-Swin-T on COCO, 12 epochs.

Published: 45.7 box AP, 41.1 mask AP (README of the official code, damo-cv/ELSA). Not
reproduced here.

"1x" is the length of the schedule only: as in the official runs, training images are flipped,
resized to a short side of 480 to 800 and sometimes cropped before that, unlike mmdet's plain 1x.
The official runs start from an ImageNet checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

and train in mixed precision: add ``--amp`` on a GPU. As there, the bias tables and ghost heads
are decayed; only normalisation layers and position embeddings are not.
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
