"""One encoder Swin-S and plain heads for all tasks of NYUD-v2, 40k iterations.

Published: mIoU 47.9, RMSE 0.6053, mErr 21.17, odsF 76.9 (Bohn et al. 2025, who quote it from
earlier articles). Not reproduced here.

No source gives the settings of this baseline. Each task has the head of DeMT on the shared 256
channels, and the schedule is DeMT's.

We assume that the published runs start from MMSegmentation's UPerNet, trained on ADE20K, and
not from plain ImageNet weights. To do the same, name the checkpoint
upernet_swin_small_patch4_window7_512x512_160k_ade20k_pretrain_224x224_1K::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE
"""

_base_ = [
    "./_base_/models/multitask_swin_s.py",
    "./_base_/datasets/nyud_multitask.py",
    "./_base_/schedules/sgd_40k.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(425, 560)),
    decode_head=dict(
        tasks=dict(
            semseg=dict(num_classes=40),
            depth=dict(),
            normals=dict(),
            edge=dict(),
        ),
    ),
)
