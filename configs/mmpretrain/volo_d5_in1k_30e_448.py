"""VOLO-D5 on ImageNet-1k, fine-tuned at 448 pixels, 30 epochs and 10 of cool-down.

Published: 87.0 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_30e_384.py. The official README has no command
for this model: the batches of 8 GPUs with 30 images each are our choice, as for D3. As in the
official code, test images get a black border.

The run starts from a checkpoint of volo_d5_in1k_300e.py, and stops with an error if there is none.
The position embedding is resized. To name another file, such as a converted official checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = "./volo_d4_in1k_30e_448.py"

checkpoint = "work_dirs/volo_d5_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(arch="d5", drop_path_rate=0.75, init_cfg=dict(checkpoint=checkpoint)),
    head=dict(init_cfg=dict(checkpoint=checkpoint)),
)
