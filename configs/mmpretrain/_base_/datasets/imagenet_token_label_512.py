# ImageNet-1k with label maps, VOLO's augmentation, 512 pixels.
_base_ = "./imagenet_token_label_224.py"

crops = [dict(step, crop=dict(step.crop, scale=512)) for step in _base_.crops]
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type="RandomChoice", transforms=crops),
    *_base_.train_pipeline[4:],
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # 512 pixels are 115 % of this edge. The crop adds a black border.
    dict(type="NumpyToPIL", to_rgb=True),
    dict(type="torchvision/Resize", size=445, interpolation="bicubic"),
    dict(type="torchvision/CenterCrop", size=512),
    dict(type="PILToNumpy", to_bgr=True),
    dict(type="PackInputs"),
]

train_dataloader = dict(batch_size=30, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=32, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
