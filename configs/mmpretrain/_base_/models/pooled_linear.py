# Average pooling and a linear layer, trained with mixup or CutMix; an experiment adds the backbone
# and the head's in_channels.
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
    # One of the two for each batch, with equal chance.
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
