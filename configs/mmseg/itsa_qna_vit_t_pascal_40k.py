"""ITSA, deformable inter-task attention, with QnA-ViT-Tiny on PASCAL-Context, 40k iterations.

Our extension: no results are published for this backbone. All settings but the backbone's are
the settings of itsa_swin_t_pascal_40k.py.

Start from an ImageNet checkpoint of configs/mmpretrain::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.
"""

_base_ = [
    "./_base_/models/multitask.py",
    "./_base_/datasets/pascal_multitask.py",
    "./_base_/schedules/sgd_40k.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(type="mmlocal.QnAViT", arch="tiny", drop_path_rate=0.1),
    decode_head=dict(
        type="mmlocal.ITSAHead",
        in_channels=[64, 128, 256, 512],
        tasks=dict(
            semseg=dict(num_classes=21),
            human_parts=dict(num_classes=7),
            sal=dict(),
            normals=dict(),
            edge=dict(loss=dict(type="mmlocal.BalancedBCELoss", pos_weight=0.95, loss_weight=50.0)),
        ),
    ),
)
