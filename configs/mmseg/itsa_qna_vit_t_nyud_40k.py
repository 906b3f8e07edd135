"""ITSA, deformable inter-task attention, with QnA-ViT-Tiny on NYUD-v2, 40k iterations.

Our extension: no results are published for this backbone. All settings but the backbone's are
the settings of itsa_swin_t_nyud_40k.py.

Start from an ImageNet checkpoint of configs/mmpretrain::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.
"""

_base_ = [
    "./_base_/models/multitask.py",
    "./_base_/datasets/nyud_multitask.py",
    "./_base_/schedules/sgd_40k.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(425, 560)),
    backbone=dict(type="mmlocal.QnAViT", arch="tiny", drop_path_rate=0.1),
    decode_head=dict(
        type="mmlocal.ITSAHead",
        in_channels=[64, 128, 256, 512],
        tasks=dict(
            semseg=dict(num_classes=40),
            depth=dict(),
            normals=dict(),
            edge=dict(),
        ),
    ),
)
