# ImageNet-1k with the augmentation of QnA's official runs, 224 pixels.
_base_ = "./imagenet_224.py"

# Operations of RandAugment, each with its range from level 0 to level 10. An operation without
# ``prob`` is applied half of the times that it is drawn.
colour_policies = [
    dict(type="AutoContrast"),
    dict(type="Equalize"),
    dict(type="Invert"),
    dict(type="Invert", prob=0.0),  # the identity
    # Officially 0 to 4 bits, rounded down to a whole number. Here the number is rounded up.
    dict(type="Posterize", magnitude_range=(-1, 3)),
    dict(type="Solarize", magnitude_range=(0, 256)),
    dict(type="SolarizeAdd", magnitude_range=(0, 110)),
    # Factors of 0.1 to 1.9, without change of sign.
    dict(type="ColorTransform", magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
    dict(type="Contrast", magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
    dict(type="Brightness", magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
    dict(type="Sharpness", magnitude_range=(-0.9, 0.9), random_negative_prob=0.0),
]
shape_policies = [
    dict(type="Rotate", magnitude_range=(0, 30)),
    dict(type="Shear", magnitude_range=(0, 0.3), direction="horizontal"),
    dict(type="Shear", magnitude_range=(0, 0.3), direction="vertical"),
]
rand_augment = dict(
    type="RandAugment",
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(pad_val=[128, 128, 128], interpolation="nearest"),
)
# As in SimCLR v2, with a strength of 0.3.
jitter = [
    dict(
        type="RandomApply",
        prob=0.8,
        transforms=[
            dict(
                type="ColorJitter",
                brightness=0.24,
                contrast=0.24,
                saturation=0.24,
                hue=0.06,
                backend="cv2",
            )
        ],
    ),
    dict(
        type="RandomGrayscale",
        prob=0.2,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.299),
    ),
]

# Both crops are TensorFlow's. OpenCV's bicubic resizing is nearer to TensorFlow's than Pillow's,
# because Pillow filters against aliasing, and the other two do not.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="EfficientNetRandomCrop", scale=224, interpolation="bicubic", backend="cv2"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(
        **rand_augment,
        policies=[
            *colour_policies,
            *shape_policies,
            dict(type="Translate", magnitude_range=(0, 100 / 224), direction="horizontal"),
            dict(type="Translate", magnitude_range=(0, 100 / 224), direction="vertical"),
        ],
    ),
    *jitter,
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # The share of the shorter side: 224 / (224 + 32) = 87.5 %.
    dict(
        type="EfficientNetCenterCrop",
        crop_size=224,
        crop_padding=32,
        interpolation="bicubic",
        backend="cv2",
    ),
    dict(type="PackInputs"),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
