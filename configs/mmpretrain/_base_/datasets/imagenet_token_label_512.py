# ImageNet-1k with label maps, VOLO's augmentation, 512 pixels.
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
                    scale=512,
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
