"""DETR with ResNet-50 on COCO, 75 epochs: the baseline of the QnA paper's detectors.

The paper gives the gains of QnA-ViT over it (Learned Queries, Arar et al. 2022). Not reproduced
here. The paper's batch of 32 is 8 GPUs with 4 images each.

The paper trains with Scenic, whose public DETR has dropout in the attention only. Here all layers
have dropout, as in mmdet. All that the paper leaves open is as in mmdet too.
"""

_base_ = [
    "./_base_/models/detr.py",
    "./_base_/datasets/coco_detection_ms.py",
    "./_base_/schedules/detr_75e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(3,),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="pytorch",
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet50"),
    ),
    neck=dict(in_channels=[2048]),
)
