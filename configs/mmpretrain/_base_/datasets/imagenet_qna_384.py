# ImageNet-1k with the augmentation of QnA's official runs, 384 pixels.
_base_ = "./imagenet_qna_224.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="EfficientNetRandomCrop", scale=384, interpolation="bicubic", backend="cv2"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(
        **_base_.rand_augment,
        policies=[
            *_base_.colour_policies,
            *_base_.shape_policies,
            # 30 % of the side, rounded down to whole pixels as in the official code.
            dict(type="Translate", magnitude_range=(0, 115 / 384), direction="horizontal"),
            dict(type="Translate", magnitude_range=(0, 115 / 384), direction="vertical"),
        ],
    ),
    *_base_.jitter,
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # The share of the shorter side: 384 / (384 + 32) = 92.3 %.
    dict(
        type="EfficientNetCenterCrop",
        crop_size=384,
        crop_padding=32,
        interpolation="bicubic",
        backend="cv2",
    ),
    dict(type="PackInputs"),
]

# 1024 images per step take 16 GPUs.
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
