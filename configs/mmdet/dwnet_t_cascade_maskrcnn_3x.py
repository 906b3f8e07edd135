"""Cascade Mask R-CNN with DWNet-T on COCO, 36 epochs.

Published: 49.9 box AP, 43.4 mask AP (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe is Swin's. The official run is in mixed precision: add ``--amp`` on a GPU. It starts from
an ImageNet checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

All batch norms are SyncBN in distributed runs and BN in a single process, in backbone and heads.
The backbone pads maps to multiples of 7, as in the official run.

Weight decay spares the LayerNorms of patch embedding and merging, and the norms of the outputs. As
in the official run, it acts on the batch norms of the blocks, because the rule looks for ``norm``
in names, and these are called ``bn...``. The ImageNet recipe spares them.
"""

_base_ = [
    "./_base_/models/cascade_maskrcnn_fpn.py",
    "./_base_/datasets/coco_instance_ms.py",
    "./_base_/schedules/adamw_3x.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.DWNet", arch="tiny", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
