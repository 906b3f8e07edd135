"""VOLO-D1 on ImageNet-1k, fine-tuned at 384 pixels, 30 epochs and 10 of cool-down.

Published: 85.2 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe is official, for 8 GPUs with 64 images each: a learning rate of 8e-6 with hardly any
weight decay, and the ground truth mixed into the targets of the class token. 10 epochs of cool-down
follow the 30. The augmentation and its differences are as in volo_d1_in1k_300e.py. The learning
rate is up to 2 % higher than in the official run.

The run starts from a checkpoint of volo_d1_in1k_300e.py, and stops with an error if there is none.
The position embedding is resized. To name another file, such as a converted official checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = [
    "./_base_/models/token_label.py",
    "./_base_/datasets/imagenet_token_label_384.py",
    "./_base_/schedules/adamw_volo_30e.py",
    "./_base_/default_runtime.py",
]

checkpoint = "work_dirs/volo_d1_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(
        type="mmlocal.VOLO",
        arch="d1",
        pretrain_img_size=384,
        drop_path_rate=0.1,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone."),
    ),
    head=dict(
        in_channels=384,
        use_ground_truth=True,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="head."),
    ),
)
auto_scale_lr = dict(base_batch_size=512)
