# Average pooling and a linear layer. Training has mixup or CutMix and then erasing, as in timm. A
# config adds the backbone and the head's in_channels.
model = dict(
    type="ImageClassifier",
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        # timm initialises every linear layer in this way.
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
        # timm treats mixed labels as "original" does.
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        cal_acc=False,
    ),
    train_cfg=dict(
        augments=dict(
            type="mmlocal.models.classifiers.MixAndErase",
            # Each batch gets one of the two, with equal chance.
            augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)],
            erasing=dict(p=0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3)),
        )
    ),
)
