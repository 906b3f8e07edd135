"""A narrow DETR with QnA in its encoder, on the generated shapes.

The paper has no such model. As in its DETR-QnA, QnA layers come before self-attention layers in the
encoder, and the losses are DETR's. DETR takes long to learn where to look. These settings let it
learn from scratch on a CPU:

* pictures are small, and maps hold 8x8 tokens;
* the model is narrow, with few layers and object queries and no dropout;
* the learning rate is ten times the rate for COCO, and the same for all parameters;
* gradients are clipped at 1 instead of 0.1;
* position embeddings vary faster.
"""

_base_ = [
    "./_base_/models/detr.py",
    "./_base_/datasets/shapes_instance.py",
    "./_base_/default_runtime.py",
]

channels = 128
num_queries = 10  # a picture holds 7 objects at most
attn_cfg = dict(embed_dims=channels, num_heads=4, dropout=0.0)
ffn_cfg = dict(embed_dims=channels, feedforward_channels=256, ffn_drop=0.0)
model = dict(
    type="mmlocal.DETRQnA",
    num_queries=num_queries,
    backbone=dict(
        type="ResNet",
        depth=18,
        stem_channels=16,
        base_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        style="pytorch",
        norm_eval=False,
    ),
    neck=dict(in_channels=[64], out_channels=channels),
    encoder=dict(
        num_layers=4,
        qna_indices=[0, 1],
        qna_cfg=dict(kernel_size=3),
        layer_cfg=dict(self_attn_cfg=attn_cfg, ffn_cfg=ffn_cfg),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=attn_cfg, cross_attn_cfg=attn_cfg, ffn_cfg=ffn_cfg),
    ),
    positional_encoding=dict(num_feats=channels // 2, temperature=20),
    bbox_head=dict(num_classes=9, embed_dims=channels),
    test_cfg=dict(max_per_img=num_queries),
)

scale = (128, 128)  # of 192x192
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=scale),
    dict(
        type="RandomFlip",
        prob=[0.25, 0.25, 0.25],
        direction=["horizontal", "vertical", "diagonal"],
    ),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator

max_epochs = 40
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=4)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.001, weight_decay=0.0001),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
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
    visualization=dict(score_thr=0.5),
)
