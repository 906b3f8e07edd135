"""DeMT with Swin-T on PASCAL-Context, 40k iterations.

Published: mIoU 69.71, parts mIoU 57.18, maxF 82.63, mErr 14.56, odsF 71.2 (README of the
official code, yangyangxu0/DeMT; quoted by Bohn et al. 2025). Not reproduced here.

Attention is global over the tokens of all tasks, as the article describes it. The released
code, which attends to other tokens, is the option ``legacy=True``; docs/multitask.md tells
more.

DeMT's official Swin starts from MMSegmentation's UPerNet, trained on ADE20K, and not from plain
ImageNet weights. To do the same, name the checkpoint
upernet_swin_tiny_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE
"""

_base_ = [
    "./_base_/models/multitask_swin_t.py",
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
