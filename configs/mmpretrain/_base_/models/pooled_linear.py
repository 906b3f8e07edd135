# Average pooling and a linear layer, trained with mixup or CutMix and then erasing, as in timm; an
# experiment adds the backbone and the head's in_channels.
model = dict(
    type="ImageClassifier",
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        # As timm initialises every linear layer, this one included.
        init_cfg=dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
        # "original": what timm gives mixed labels.
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        cal_acc=False,
    ),
    train_cfg=dict(
        augments=dict(
            type="mmlocal.models.classifiers.MixAndErase",
            # One of the two for each batch, with equal chance.
            augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)],
            erasing=dict(p=0.25, scale=(0.02, 1 / 3), ratio=(0.3, 1 / 0.3)),
        )
    ),
)
