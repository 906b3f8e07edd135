"""ITSA, deformable inter-task attention, with HRNetV2-W18-small on PASCAL-Context, 40k iterations.

Published: mIoU 58.21, parts mIoU 57.06, maxF 84.53, mErr 14.02, odsF 75.26 (Bohn et al. 2025).
Not reproduced here.

Compare it with the article's own DeMT (mIoU 55.82), not with the README of DeMT (mIoU 59.23).

No code is published. Every setting that the article leaves open is listed in docs/multitask.md.
Batch and iterations are DeMT's, as the article names neither.

The learning rate is 0.001, as in the article. At the rate of ATRC, 0.01 or 0.005, the scaled
gradients of the offsets would move them further than the factor of 200 with which the article's
training diverges.

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
        type="mmlocal.ITSAHead",
        tasks=dict(
            semseg=dict(num_classes=21),
            human_parts=dict(num_classes=7),
            sal=dict(),
            normals=dict(),
            edge=dict(loss=dict(type="mmlocal.BalancedBCELoss", pos_weight=0.95, loss_weight=50.0)),
        ),
    ),
)
