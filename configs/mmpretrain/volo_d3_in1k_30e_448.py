"""VOLO-D3 on ImageNet-1k, fine-tuned at 448 pixels, 30 epochs and 10 of cool-down.

Published: 86.3 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_30e_384.py, for 8 GPUs with 30 images each.
The official README pools the label maps to 24x24 here, but the model has 28x28 tokens. We pool to
28x28.

The run starts from a checkpoint of volo_d3_in1k_300e.py, and stops with an error if there is none.
The position embedding is resized. To name another file, such as a converted official checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = [
    "./_base_/models/token_label.py",
    "./_base_/datasets/imagenet_token_label_448.py",
    "./_base_/schedules/adamw_volo_30e.py",
    "./_base_/default_runtime.py",
]

checkpoint = "work_dirs/volo_d3_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(
        type="mmlocal.VOLO",
        arch="d3",
        pretrain_img_size=448,
        drop_path_rate=0.5,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone."),
    ),
    head=dict(
        in_channels=512,
        use_ground_truth=True,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="head."),
    ),
)
auto_scale_lr = dict(base_batch_size=240)
