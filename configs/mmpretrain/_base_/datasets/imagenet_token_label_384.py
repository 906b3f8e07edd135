# ImageNet-1k with label maps, VOLO's augmentation, 384 pixels.
_base_ = "./imagenet_token_label_224.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    _base_.timm_rand_augment,
    dict(
        type="RandomChoice",
        transforms=[
            dict(
                type="mmlocal.RecordCrop",
                crop=dict(
                    type="RandomResizedCrop",
                    scale=384,
                    backend="pillow",
                    interpolation=interpolation,
                ),
            )
            for interpolation in ("bilinear", "bicubic")
        ],
    ),
    dict(type="mmlocal.LoadTokenLabels", label_root="data/imagenet_token_labels"),
    dict(type="PackInputs", algorithm_keys=("token_labels", "token_box")),
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
