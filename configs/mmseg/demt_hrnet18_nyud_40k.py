"""DeMT with HRNetV2-W18-small on NYUD-v2, 40k iterations.

Published: mIoU 39.18, RMSE 0.5922, mErr 20.21, odsF 76.4 (README of the official code,
yangyangxu0/DeMT) and mIoU 37.6, RMSE 0.6286, mErr 20.8, odsF 77.18 (Bohn et al. 2025, who
trained this baseline themselves). Not reproduced here. No config for this backbone is
published, so the two sources may well have trained different models.

Attention is global over the tokens of all tasks, as the article describes it. The released
code, which attends to other tokens, is the option ``legacy=True``; docs/multitask.md tells
more.

DeMT's config for this backbone is not published. The learning rate is 0.01, as in ATRC, on
whose code DeMT is built; Bohn et al. train at 0.001.

The official runs start from ImageNet weights::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=open-mmlab://msra/hrnetv2_w18_small
"""

_base_ = [
    "./_base_/models/multitask_hrnet18.py",
    "./_base_/datasets/nyud_multitask.py",
    "./_base_/schedules/sgd_40k.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(425, 560)),
    decode_head=dict(
        type="mmlocal.DeMTHead",
        tasks=dict(
            semseg=dict(num_classes=40),
            depth=dict(),
            normals=dict(),
            edge=dict(),
        ),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.01))
