# PASCAL-Context for five tasks, as DeMT and ATRC train on it: 512x512 pixels, and 8 images in a
# batch of all GPUs together. With several GPUs, divide train_dataloader.batch_size by their number.
# docs/multitask_data.md shows the layout that the data set reads.
dataset_type = "mmlocal.PASCALContext"
data_root = "data/PASCALContext"
tasks = ("semseg", "human_parts", "sal", "normals", "edge")
crop_size = (512, 512)

# The label maps follow the pixels of the image file, not the orientation tag of a camera.
load_image = dict(type="LoadImageFromFile", color_type="color_ignore_orientation")

train_pipeline = [
    load_image,
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
    load_image,
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
    num_classes=dict(semseg=21, human_parts=7),
)
# odsF takes seconds for each image, so only the test has it. The papers compute it on 2,498 of the
# 5,105 images, which SEISM's test_new.txt lists: --cfg-options test_evaluator.edge.subset=FILE
test_evaluator = dict(
    type="mmlocal.MultiTaskMetric",
    tasks=tasks,
    num_classes=dict(semseg=21, human_parts=7),
    edge=dict(max_dist=0.0075),
)
