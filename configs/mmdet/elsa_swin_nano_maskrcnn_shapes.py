"""A narrow ELSA-Swin Mask R-CNN on the generated shapes: ``make demo``.

The paper has no such model. It trains from scratch on two CPU cores within ten minutes. For this,
it is narrow, initialised for its width, and has batch normalisation after the backbone.
"""

_base_ = [
    "./_base_/models/maskrcnn_fpn.py",
    "./_base_/datasets/shapes_instance.py",
    "./_base_/default_runtime.py",
]

num_classes = 9
channels = 48
strides = [4, 8, 16, 32]
norm_cfg = dict(type="BN")
roi_extractor = dict(
    out_channels=channels,
    featmap_strides=strides,
    # The objects are 14 to 130 pixels wide: half of COCO's.
    finest_scale=28,
    roi_layer=dict(sampling_ratio=1),
)
model = dict(
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
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=channels, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(scales=[4], strides=strides),
    ),
    roi_head=dict(
        bbox_roi_extractor=roi_extractor,
        bbox_head=dict(
            type="ConvFCBBoxHead",
            num_shared_convs=2,
            num_shared_fcs=1,
            in_channels=channels,
            conv_out_channels=channels,
            fc_out_channels=256,
            num_classes=num_classes,
            # All classes teach one regressor.
            reg_class_agnostic=True,
            norm_cfg=norm_cfg,
        ),
        mask_roi_extractor=roi_extractor,
        mask_head=dict(
            num_convs=2,
            in_channels=channels,
            conv_out_channels=channels,
            num_classes=num_classes,
            norm_cfg=norm_cfg,
        ),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=30)),
)

max_epochs = 6
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.003, betas=(0.9, 0.999), weight_decay=0.05),
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
train_dataloader = dict(batch_size=4)
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(interval=10),
    # With one, a run killed while it writes the next checkpoint would have none.
    checkpoint=dict(max_keep_ckpts=2),
    visualization=dict(score_thr=0.6),
)
# The picture shows through the masks.
visualizer = dict(alpha=0.4)
