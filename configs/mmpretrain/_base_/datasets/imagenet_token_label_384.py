# ImageNet-1k with label maps, VOLO's augmentation, 384 pixels.
_base_ = "./imagenet_token_label_224.py"

crops = [dict(step, crop=dict(step.crop, scale=384)) for step in _base_.crops]
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type="RandomChoice", transforms=crops),
    *_base_.train_pipeline[4:],
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # 384 pixels are 96 % of this edge.
    dict(type="ResizeEdge", scale=400, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=384),
    dict(type="PackInputs"),
]

train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=32, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
