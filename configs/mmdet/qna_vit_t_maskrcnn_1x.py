"""Mask R-CNN with QnA-ViT-Tiny on COCO, 12 epochs.

Our extension: the paper's detectors are DETRs. The settings are Swin's for this head, with the drop
path of classification. Weight decay spares the norms, as in Swin, and the tables, as in the
official code of QnA. Window attention takes images of any size. It cuts a map into windows as equal
as possible, of at most 14 tokens a side in stage 3 and 7 in stage 4.

Start from an ImageNet checkpoint. Without one, training begins slowly. Its first gradients are as
small with padded images as without padding: see ``mmlocal.layers.LayerNorm``.

Augmentation, the start from an ImageNet checkpoint and ``--amp`` are as in
elsa_swin_t_maskrcnn_1x.py.
"""

_base_ = [
    "./_base_/models/maskrcnn_fpn.py",
    "./_base_/datasets/coco_instance_ms.py",
    "./_base_/schedules/adamw_1x.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.QnAViT", arch="tiny", drop_path_rate=0.05),
    neck=dict(in_channels=[64, 128, 256, 512]),
)

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "attn_scale_table": dict(decay_mult=0.0),
            "rel_pos_table": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
        }
    )
)
