"""DeMT with HRNetV2-W18-small on PASCAL-Context, 40k iterations.

Published: mIoU 59.23, parts mIoU 57.93, maxF 83.93, mErr 14.02, odsF 69.8 (README of the
official code, yangyangxu0/DeMT) and mIoU 55.82, parts mIoU 57.08, maxF 84.17, mErr 14.21, odsF
74.9 (Bohn et al. 2025, who trained this baseline themselves). Not reproduced here. No config
for this backbone is published, so the two sources may well have trained different models.

Attention is global over the tokens of all tasks, as the article describes it. The released
code, which attends to other tokens, is the option ``legacy=True``; docs/multitask.md tells
more.

DeMT's config for this backbone is not published. The learning rate is 0.005, as in ATRC, on
whose code DeMT is built; Bohn et al. train at 0.001.

The official runs start from ImageNet weights::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=open-mmlab://msra/hrnetv2_w18_small
"""

_base_ = [
    "./_base_/models/multitask_hrnet18.py",
    "./_base_/datasets/pascal_multitask.py",
    "./_base_/schedules/sgd_40k.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(
        type="mmlocal.DeMTHead",
        tasks=dict(
            semseg=dict(num_classes=21),
            human_parts=dict(num_classes=7),
            sal=dict(),
            normals=dict(),
            edge=dict(loss=dict(type="mmlocal.BalancedBCELoss", pos_weight=0.95, loss_weight=50.0)),
        ),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.005))
