"""UPerNet with DWNet-T on ADE20K, 160k iterations.

Published: 45.5 mIoU with one scale (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe is Swin's, with a drop path of 0.3 for T and B. The official runs start from an ImageNet
checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

SyncBN, padding and weight decay are as in the detectors: all batch norms are SyncBN in distributed
runs, the backbone pads maps to multiples of 7, and weight decay acts on the batch norms of the
blocks and heads, but not on other norms.
"""

_base_ = [
    "./_base_/models/upernet.py",
    "./_base_/datasets/ade20k.py",
    "./_base_/schedules/adamw_160k.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.DWNet", arch="tiny", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
