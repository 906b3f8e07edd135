"""ITSA, deformable inter-task attention, with HRNetV2-W18-small on NYUD-v2, 40k iterations.

Published: mIoU 40.39, RMSE 0.5819, mErr 20.34, odsF 77.12 (Bohn et al. 2025). Not reproduced
here.

Compare it with the article's own DeMT (mIoU 37.6), not with the README of DeMT (mIoU 39.18).

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
    "./_base_/datasets/nyud_multitask.py",
    "./_base_/schedules/sgd_40k.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(425, 560)),
    decode_head=dict(
        type="mmlocal.ITSAHead",
        tasks=dict(
            semseg=dict(num_classes=40),
            depth=dict(),
            normals=dict(),
            edge=dict(),
        ),
    ),
)
