"""DETR with QnA-ViT-T on COCO, 75 epochs.

Published: +2.2 AP over ResNet-50, r50_detr_75e.py (Learned Queries, Arar et al. 2022). Not
reproduced here.

The paper starts from an ImageNet checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

It does not say how maps that are no multiple of the attention windows are cut, whether the last map
is normalised, nor the drop path rate: here windows are made to fit (see ``mmlocal.QnAViT``), the
map goes through the checkpoint's last LayerNorm, and the rate is that of ImageNet.
"""

_base_ = [
    "./_base_/models/detr.py",
    "./_base_/datasets/coco_detection_ms.py",
    "./_base_/schedules/detr_75e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.QnAViT", arch="tiny", out_indices=(3,)),
    neck=dict(in_channels=[512]),
)
