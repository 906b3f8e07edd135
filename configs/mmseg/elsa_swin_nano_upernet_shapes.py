"""A narrow ELSA-Swin UPerNet on the generated shapes: ``make demo-seg``.

The paper has no such model. It trains from scratch on two CPU cores within ten minutes. For this,
it is narrow and initialised for its width.
"""

_base_ = [
    "./_base_/models/upernet.py",
    "./_base_/datasets/shapes_semantic.py",
    "./_base_/default_runtime.py",
]

num_classes = 10
model = dict(
    data_preprocessor=dict(size=(192, 192)),
    backbone=dict(
        type="mmlocal.ELSASwin",
        arch=dict(embed_dims=32, depths=[1, 1, 2, 1], num_heads=[2, 4, 8, 16], group_width=4),
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        # The usual standard deviation of 0.02 suits three times the channels.
        init_cfg=[
            dict(type="Xavier", layer="Linear", distribution="uniform", bias=0.0),
            dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
        ],
    ),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=48, num_classes=num_classes),
    auxiliary_head=dict(in_channels=128, channels=48, num_classes=num_classes),
)

max_iters = 1500
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.003, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=max_iters, T_max=max_iters),
]
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=10),
    # With one, a run killed while it writes the next checkpoint would have none.
    checkpoint=dict(interval=500, max_keep_ckpts=2),
    visualization=dict(interval=1),
)
