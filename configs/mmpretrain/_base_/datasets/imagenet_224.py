# ImageNet-1k with timm's augmentation, 224 pixels. The model mixes and erases.
dataset_type = "ImageNet"
data_root = "data/imagenet"
data_preprocessor = dict(
    num_classes=1000,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True,
)

# Pipelines work on BGR.
bgr_mean = [103.53, 116.28, 123.675]
# rand-m9-mstd0.5-inc1
timm_rand_augment = dict(
    type="RandAugment",
    policies="timm_increasing",
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(pad_val=[round(x) for x in bgr_mean], interpolation="bicubic"),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    # timm draws the interpolation of each crop at random. It does so for RandAugment's steps too,
    # which are always bicubic here.
    dict(
        type="RandomChoice",
        transforms=[
            dict(
                type="RandomResizedCrop",
                scale=224,
                crop_ratio_range=(0.08, 1.0),
                aspect_ratio_range=(3 / 4, 4 / 3),
                backend="pillow",
                interpolation=interpolation,
            )
            for interpolation in ("bilinear", "bicubic")
        ],
    ),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    timm_rand_augment,
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # 224 pixels are 90 % of this edge.
    dict(
        type="ResizeEdge",
        scale=248,
        edge="short",
        backend="pillow",
        interpolation="bicubic",
    ),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    drop_last=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type=dataset_type, data_root=data_root, split="train", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type=dataset_type, data_root=data_root, split="val", pipeline=test_pipeline),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy", topk=(1, 5))
test_evaluator = val_evaluator
