# The generated scenes, for all six tasks. To make them:
# python tools/make_shapes.py --tasks multitask
dataset_type = "mmlocal.NYUDv2"
data_root = "data/shapes/NYUDv2"
tasks = ("semseg", "human_parts", "sal", "depth", "normals", "edge")
metainfo = dict(
    classes=(
        "floor",
        "wall",
        "ceiling",
        "rug",
        "picture",
        "ball",
        "box",
        "cone",
        "cylinder",
        "person",
    ),
    palette=[
        (152, 118, 84),
        (174, 199, 232),
        (230, 230, 230),
        (148, 103, 189),
        (227, 208, 40),
        (31, 119, 180),
        (255, 127, 14),
        (44, 160, 44),
        (23, 190, 207),
        (214, 39, 40),
    ],
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmlocal.LoadMultiTaskAnnotations"),
    dict(type="mmlocal.MultiTaskRandomFlip", prob=0.5),
    dict(type="mmlocal.MarkIgnored"),
    dict(type="mmlocal.PackMultiTaskInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmlocal.LoadMultiTaskAnnotations"),
    dict(type="mmlocal.MarkIgnored"),
    dict(type="mmlocal.PackMultiTaskInputs"),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split="train",
        tasks=tasks,
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
        type=dataset_type,
        data_root=data_root,
        split="val",
        tasks=tasks,
        test_mode=True,
        metainfo=metainfo,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# The tolerance of boundaries is a share of the image's diagonal: 1.3 pixels here.
test_evaluator = dict(
    type="mmlocal.MultiTaskMetric",
    tasks=tasks,
    num_classes=dict(semseg=10, human_parts=7),
    edge=dict(max_dist=0.011, boundary_map=True),
)
# odsF takes longer than all other metrics, so only the test has it.
val_evaluator = dict(
    type="mmlocal.MultiTaskMetric",
    tasks=tasks,
    num_classes=dict(semseg=10, human_parts=7),
)
