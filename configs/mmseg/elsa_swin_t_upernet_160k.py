"""UPerNet with ELSA-Swin-T on ADE20K, 160k iterations.

Published: 47.9 mIoU with six scales and flip (README of the official code, damo-cv/ELSA). Not
reproduced here.

The test has a single scale. ``tools/test.py --tta`` runs the test of the official code. It has six
scales, 0.5 to 1.75 times (2048, 512), keeps the aspect ratio, and also flips each image. The
article (Zhou et al. 2021) names five scales. The official validation during training had the six
scales too, without flip. Here it has one scale.

The official runs start from an ImageNet checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

The official runs train in full precision. As in them, weight decay acts on bias tables, ghost heads
and the heads' BN. It spares the backbone's normalisation layers and position embeddings only.
"""

_base_ = [
    "./_base_/models/upernet.py",
    "./_base_/datasets/ade20k.py",
    "./_base_/schedules/adamw_160k.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.ELSASwin", arch="tiny", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
