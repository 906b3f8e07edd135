"""A narrow ELSA-Swin classifier on the generated shapes: ``make demo-cls``.

The paper has no such model. It trains from scratch on two CPU cores in minutes. For this, it is
narrow and initialised for its width.
"""

_base_ = ["./_base_/datasets/shapes_classes.py", "./_base_/default_runtime.py"]

model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="mmlocal.ELSASwin",
        arch=dict(embed_dims=32, depths=[1, 1, 2, 1], num_heads=[2, 4, 8, 16], group_width=4),
        fit_window=True,
        out_indices=(3,),
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        # The usual standard deviation of 0.02 suits three times the channels.
        init_cfg=[
            dict(type="Xavier", layer="Linear", distribution="uniform", bias=0.0),
            dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
        ],
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=9,
        in_channels=256,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
)

max_epochs = 30
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=5)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    optimizer=dict(type="AdamW", lr=0.003, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type="CosineAnnealingLR",
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=10),
    # With one, a run killed while it writes the next checkpoint would have none.
    checkpoint=dict(max_keep_ckpts=2),
    visualization=dict(rescale_factor=3),
)
