"""One network with Swin-T for each task of PASCAL-Context, 40k iterations.

Published: mIoU 67.81, parts mIoU 56.32, maxF 82.18, mErr 14.81, odsF 70.9 (Bohn et al. 2025,
who quote it from earlier articles). Not reproduced here.

``share_backbone=False`` gives each task its own backbone and head, all in one run. The tasks
share nothing but the batches.

No source gives the settings of this baseline. Each task has the head of DeMT on the shared 256
channels, and the schedule is DeMT's.

We assume that the published runs start from MMSegmentation's UPerNet, trained on ADE20K, and
not from plain ImageNet weights. To do the same, name the checkpoint
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
    share_backbone=False,
    data_preprocessor=dict(size=(512, 512)),
    decode_head=dict(
        tasks=dict(
            semseg=dict(num_classes=21),
            human_parts=dict(num_classes=7),
            sal=dict(),
            normals=dict(),
            edge=dict(loss=dict(type="mmlocal.BalancedBCELoss", pos_weight=0.95, loss_weight=50.0)),
        ),
    ),
)
