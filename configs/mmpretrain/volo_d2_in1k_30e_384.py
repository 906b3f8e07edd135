"""VOLO-D2 on ImageNet-1k, fine-tuned at 384 pixels, 30 epochs and 10 of cool-down.

Published: 86.0 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_30e_384.py, for 8 GPUs with 48 images each.

The run starts from a checkpoint of volo_d2_in1k_300e.py, and stops with an error if there is none.
The position embedding is resized. To name another file, such as a converted official checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = "./volo_d1_in1k_30e_384.py"

checkpoint = "work_dirs/volo_d2_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(arch="d2", drop_path_rate=0.2, init_cfg=dict(checkpoint=checkpoint)),
    head=dict(in_channels=512, init_cfg=dict(checkpoint=checkpoint)),
)

train_dataloader = dict(batch_size=48)
auto_scale_lr = dict(base_batch_size=384)
