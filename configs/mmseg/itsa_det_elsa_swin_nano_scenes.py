"""The network of ``make demo-multitask`` with the detection of objects as one more task.

Our extension: the article names tasks that are not dense as its limit. Queries with learned
reference points read the pyramids of all dense tasks, and mmdet's Deformable DETR head makes boxes
of them. It needs mmdet beside mmseg, and trains on the generated scenes::

    python tools/make_shapes.py --tasks multitask
    python tools/train.py itsa_det_elsa_swin_nano_scenes
"""

_base_ = "./itsa_elsa_swin_nano_scenes.py"

model = dict(
    decode_head=dict(
        type="mmlocal.ITSADetectionHead",
        detection=dict(
            type="mmlocal.InterTaskDETRHead",
            num_classes=5,
            queries=dict(num_queries=20, num_heads=2, num_points=4),
        ),
    ),
)

load_boxes = dict(type="mmcv.LoadAnnotations", with_bbox=True, with_label=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmlocal.LoadMultiTaskAnnotations"),
    load_boxes,
    dict(type="mmlocal.MultiTaskRandomFlip", prob=0.5),
    dict(type="mmlocal.MarkIgnored"),
    dict(type="mmlocal.PackMultiTaskInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="mmlocal.LoadMultiTaskAnnotations"),
    load_boxes,
    dict(type="mmlocal.MarkIgnored"),
    dict(type="mmlocal.PackMultiTaskInputs"),
]
train_dataloader = dict(dataset=dict(ann_file="boxes_train.json", pipeline=train_pipeline))
# CocoMetric looks for the boxes of all images.
val_dataloader = dict(dataset=dict(indices=None, ann_file="boxes_val.json", pipeline=test_pipeline))
test_dataloader = val_dataloader

coco_metric = dict(
    type="mmdet.CocoMetric",
    ann_file="data/shapes/NYUDv2/boxes_val.json",
    metric="bbox",
)
val_evaluator = [{{_base_.val_evaluator}}, coco_metric]
test_evaluator = [{{_base_.test_evaluator}}, coco_metric]
