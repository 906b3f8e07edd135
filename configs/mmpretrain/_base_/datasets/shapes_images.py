# Crops of the generated scenes, without labels. To make them: python tools/make_shapes.py
data_root = "data/shapes"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomCrop", crop_size=64),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CenterCrop", crop_size=64),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CustomDataset",
        data_root=data_root,
        data_prefix="train",
        with_label=False,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CustomDataset",
        data_root=data_root,
        data_prefix="val",
        with_label=False,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
