"""A narrow Conditional DETR with QnA in its encoder, on the generated shapes.

The paper has no such model. It has the encoder of DETR-QnA in another detector, which converges
sooner than DETR. It trains from scratch on a CPU in about a quarter of an hour. For this, it has a
narrow backbone, maps of stride 16, few layers and object queries, no dropout, and one learning rate
for all parameters.
"""

_base_ = [
    "./_base_/models/detr.py",
    "./_base_/datasets/shapes_instance.py",
    "./_base_/default_runtime.py",
]

channels = 256  # Conditional DETR works with no other number
num_queries = 20
ffn_cfg = dict(embed_dims=channels, feedforward_channels=512, ffn_drop=0.0)
attn_cfg = dict(embed_dims=channels, num_heads=8)
model = dict(
    type="mmlocal.ConditionalDETRQnA",
    num_queries=num_queries,
    backbone=dict(
        type="mmlocal.QnAViT",
        arch=dict(
            embed_dims=32,
            attn_depths=[0, 0, 1],
            qna_depths=[1, 1, 1],
            attn_heads=[1, 2, 4],
            qna_heads=[4, 8, 16],
        ),
        window_sizes=[7, 7, 14],
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        out_indices=[2],
    ),
    neck=dict(in_channels=[128]),
    encoder=dict(
        num_layers=4,
        qna_indices=[0, 1],
        qna_cfg=dict(kernel_size=3),
        layer_cfg=dict(self_attn_cfg=dict(dropout=0.0), ffn_cfg=ffn_cfg),
    ),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=dict(_delete_=True, cross_attn=False, **attn_cfg),
            cross_attn_cfg=dict(_delete_=True, cross_attn=True, **attn_cfg),
            ffn_cfg=ffn_cfg,
        ),
    ),
    bbox_head=dict(
        type="ConditionalDETRHead",
        num_classes=9,
        loss_cls=dict(
            _delete_=True,
            type="FocalLoss",
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type="FocalLossCost", weight=2.0),
                dict(type="BBoxL1Cost", weight=5.0, box_format="xywh"),
                dict(type="IoUCost", iou_mode="giou", weight=2.0),
            ]
        )
    ),
    test_cfg=dict(max_per_img=num_queries),
)

max_epochs = 10
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.0003, betas=(0.9, 0.999), weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1),
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
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=10),
    # With one, a run killed while it writes the next checkpoint would have none.
    checkpoint=dict(max_keep_ckpts=2),
    visualization=dict(score_thr=0.5),
)
