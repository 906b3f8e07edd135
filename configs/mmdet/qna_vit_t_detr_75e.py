"""DETR with QnA-ViT-T on COCO, 75 epochs.

Published: +2.2 AP over ResNet-50, r50_detr_75e.py (Learned Queries, Arar et al. 2022). Not
reproduced here.

The paper starts from an ImageNet checkpoint::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=FILE model.backbone.init_cfg.prefix=backbone.

The paper does not state three things, so we chose them. Attention windows fit maps whose sides are
not a multiple of the window (see ``mmlocal.QnAViT``). The last map goes through the last LayerNorm
of the checkpoint. The drop path rate is 0.05, as in ImageNet training.
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
