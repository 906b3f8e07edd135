# ImageNet-1k with timm's augmentation, 384 pixels.
_base_ = "./imagenet_224.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=384, backend="pillow", interpolation="bicubic"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    _base_.timm_rand_augment,
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # The whole image, as in Swin's fine-tuning.
    dict(type="Resize", scale=(384, 384), backend="pillow", interpolation="bicubic"),
    dict(type="PackInputs"),
]

# 1024 images per step take 16 GPUs.
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
