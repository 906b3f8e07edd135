"""UPerNet with ELSA-Swin-T on ADE20K, 160k iterations.

Published: 47.9 mIoU with six scales and flip (README of the official code, damo-cv/ELSA). Not
reproduced here.

The test has a single scale. ``tools/test.py --tta`` runs the test of the official code: ratios 0.5
to 1.75 of (2048, 512), keeping the aspect ratio, each also flipped. These are the six scales of the
code; the article (Zhou et al. 2021) names five. The official validation during training had the
six scales too, without flip; here it has one.

The official runs start from an ImageNet checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

and train in full precision. As there, the bias tables, the ghost heads and the heads' BN are
decayed; only the backbone's normalisation layers and position embeddings are not.
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
