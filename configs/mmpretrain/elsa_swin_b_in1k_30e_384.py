"""ELSA-Swin-B on ImageNet-1k, fine-tuned for 30 epochs at 384 pixels.

Our extension: the paper has no model above 224 pixels. The recipe is Swin's for the same step:
12x12 windows, so that the last stage still attends globally, and a learning rate of 4e-5 for 1024
images per step with hardly any weight decay. Add ``--amp`` on a GPU.

The run starts from a checkpoint of elsa_swin_b_in1k_300e.py (its averaged weights), and stops with
an error if there is none. The bias tables are resized to the new window. To name another file::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_384.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/default_runtime.py",
]

checkpoint = "work_dirs/elsa_swin_b_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(
        type="mmlocal.ELSASwin",
        arch="base",
        window_size=12,
        fit_window=True,
        out_indices=(3,),
        drop_path_rate=0.5,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone."),
    ),
    head=dict(
        in_channels=1024,
        init_cfg=dict(_delete_=True, type="Pretrained", checkpoint=checkpoint, prefix="head."),
    ),
)

train_cfg = dict(max_epochs=30)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=5),
    dict(type="CosineAnnealingLR", T_max=25, eta_min=4e-7, by_epoch=True, begin=5, end=30),
]
optim_wrapper = dict(optimizer=dict(lr=4e-5, weight_decay=1e-8))
