# ImageNet-1k with label maps, VOLO's augmentation, 224 pixels. The model mixes and erases.
# The label maps are a second folder: data/imagenet_token_labels/n01440764/n01440764_10026.pt.
# To train without them: --cfg-options train_dataloader.dataset.pipeline.4.label_root=None
_base_ = "./imagenet_224.py"

crops = [
    dict(
        type="mmlocal.RecordCrop",
        crop=dict(
            type="RandomResizedCrop", scale=224, backend="pillow", interpolation=interpolation
        ),
    )
    for interpolation in ("bilinear", "bicubic")
]
# As in the official code, the crop comes last.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    _base_.timm_rand_augment,
    dict(type="RandomChoice", transforms=crops),
    dict(type="mmlocal.LoadTokenLabels", label_root="data/imagenet_token_labels"),
    dict(type="PackInputs", algorithm_keys=("token_labels", "token_box")),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    # 224 pixels are 96 % of this edge.
    dict(type="ResizeEdge", scale=233, edge="short", backend="pillow", interpolation="bicubic"),
    dict(type="CenterCrop", crop_size=224),
    dict(type="PackInputs"),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
