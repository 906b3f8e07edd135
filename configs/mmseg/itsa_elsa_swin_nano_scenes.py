"""A narrow ITSA network for six tasks on the generated scenes: ``make demo-multitask``.

No article has such a model. It trains from scratch on two CPU cores within ten minutes. For this,
all widths are small, and there are 2 steps, 2 levels, 2 heads and 4 points instead of 3, 3, 4 and
16. The factor of the offsets' gradients is 1, because AdamW does not depend on it. The weights of
the losses are nearer to each other than in the papers, so that depth is learned in a short time.
"""

_base_ = [
    "./_base_/models/multitask.py",
    "./_base_/datasets/scenes_multitask.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(64, 96)),
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
    decode_head=dict(
        type="mmlocal.ITSAHead",
        in_channels=[32, 64, 128, 256],
        channels=32,
        num_heads=1,
        tasks=dict(
            semseg=dict(num_classes=10),
            human_parts=dict(num_classes=7),
            sal=dict(loss=dict(type="mmlocal.BalancedCELoss", loss_weight=2.0)),
            depth=dict(loss=dict(type="mmlocal.DepthLoss", loss_weight=3.0)),
            normals=dict(loss=dict(type="mmlocal.NormalLoss", loss_weight=5.0)),
            edge=dict(loss=dict(type="mmlocal.BalancedBCELoss", pos_weight=0.8, loss_weight=15.0)),
        ),
        interaction=dict(
            num_steps=2,
            num_levels=2,
            num_heads=2,
            num_points=4,
            position_channels=8,
            ffn_channels=80,
            offset_grad_scale=1.0,
            dropout=0.0,
        ),
    ),
)

# Validation only draws curves, so it sees a part of the images.
val_dataloader = dict(dataset=dict(indices=40))

max_iters = 1000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.003, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
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
