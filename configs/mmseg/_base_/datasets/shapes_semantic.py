# The generated data set. To make it: python tools/make_shapes.py
data_root = "data/shapes/"
metainfo = dict(
    classes=(
        "background",
        "arrow",
        "circle",
        "crescent",
        "cross",
        "heart",
        "ring",
        "square",
        "star",
        "triangle",
    ),
    palette=[
        (0, 0, 0),
        (255, 127, 14),
        (31, 119, 180),
        (227, 208, 40),
        (44, 160, 44),
        (214, 39, 40),
        (148, 103, 189),
        (23, 190, 207),
        (240, 110, 200),
        (140, 86, 75),
    ],
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomFlip", prob=[0.3, 0.3], direction=["horizontal", "vertical"]),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="train", seg_map_path="annotations/train"),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        data_prefix=dict(img_path="val", seg_map_path="annotations/val"),
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
