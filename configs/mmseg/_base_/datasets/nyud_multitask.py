# NYUD-v2 for four tasks, as DeMT and ATRC train on it: 425x560 pixels, and 8 images in a batch of
# all GPUs together. With several GPUs, divide train_dataloader.batch_size by their number.
# docs/multitask_data.md shows the two layouts that the data set reads.
dataset_type = "mmlocal.NYUDv2"
data_root = "data/NYUDv2"
tasks = ("semseg", "depth", "normals", "edge")
crop_size = (425, 560)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmlocal.LoadMultiTaskAnnotations"),
    dict(type="mmlocal.MultiTaskRandomScale", scale_range=(0.5, 2.0)),
    dict(type="mmlocal.MultiTaskRandomCrop", crop_size=crop_size, cat_max_ratio=0.75),
    dict(type="mmlocal.MultiTaskRandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="mmlocal.MultiTaskPad", size=crop_size),
    dict(type="mmlocal.MarkIgnored"),
    dict(type="mmlocal.PackMultiTaskInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmlocal.MultiTaskPad", size=crop_size),
    # It comes after the padding, so that the ground truth keeps its size.
    dict(type="mmlocal.LoadMultiTaskAnnotations"),
    dict(type="mmlocal.MarkIgnored"),
    dict(type="mmlocal.PackMultiTaskInputs"),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split="train",
        tasks=tasks,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split="val",
        tasks=tasks,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="mmlocal.MultiTaskMetric",
    tasks=tasks,
    num_classes=dict(semseg=40),
)
# odsF takes seconds for each image, so only the test has it.
test_evaluator = dict(
    type="mmlocal.MultiTaskMetric",
    tasks=tasks,
    num_classes=dict(semseg=40),
    edge=dict(max_dist=0.011, boundary_map=True),
)
