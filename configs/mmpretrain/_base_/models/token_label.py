# VOLO's training: token labelling with MixToken, and erasing, but no mixup and no CutMix. A config
# adds the type of the backbone and the head's in_channels.
model = dict(
    type="mmlocal.TokenLabelClassifier",
    backbone=dict(with_cls_token=True, out_indices=(3,)),
    head=dict(
        type="mmlocal.TokenLabelHead",
        num_classes=1000,
        # The official code exchanges x and y when it crops a label map, and so do these configs.
        swap_axes=True,
    ),
    train_cfg=dict(
        augments=dict(
            type="mmlocal.models.classifiers.MixAndErase",
            erasing=dict(p=0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3)),
        )
    ),
)
