"""VOLO-D5 on ImageNet-1k, fine-tuned at 512 pixels, 30 epochs and 10 of cool-down.

Published: 87.1 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_30e_384.py. The official README has no command
for this model: the batches of 8 GPUs with 30 images each are our choice, as for D3. As in the
official code, test images get a black border.

The run starts from a checkpoint of volo_d5_in1k_300e.py, and stops with an error if there is none.
The position embedding is resized. To name another file, such as a converted official checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = [
    "./_base_/models/token_label.py",
    "./_base_/datasets/imagenet_token_label_512.py",
    "./_base_/schedules/adamw_volo_30e.py",
    "./_base_/default_runtime.py",
]

checkpoint = "work_dirs/volo_d5_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(
        type="mmlocal.VOLO",
        arch="d5",
        pretrain_img_size=512,
        drop_path_rate=0.75,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone."),
    ),
    head=dict(
        in_channels=768,
        use_ground_truth=True,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="head."),
    ),
)
auto_scale_lr = dict(base_batch_size=240)
