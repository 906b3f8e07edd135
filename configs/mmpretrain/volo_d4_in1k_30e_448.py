"""VOLO-D4 on ImageNet-1k, fine-tuned at 448 pixels, 30 epochs and 10 of cool-down.

Published: 86.8 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_30e_384.py. The official README has no command
for this model: the batches of 8 GPUs with 30 images each are our choice, as for D3. As in the
official code, test images get a black border.

The run starts from a checkpoint of volo_d4_in1k_300e.py, and stops with an error if there is none.
The position embedding is resized. To name another file, such as a converted official checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = "./volo_d3_in1k_30e_448.py"

checkpoint = "work_dirs/volo_d4_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(arch="d4", init_cfg=dict(checkpoint=checkpoint)),
    head=dict(in_channels=768, init_cfg=dict(checkpoint=checkpoint)),
)

test_pipeline = [
    dict(type="LoadImageFromFile"),
    # 448 pixels are 115 % of this edge. The crop adds a black border.
    dict(type="NumpyToPIL", to_rgb=True),
    dict(type="torchvision/Resize", size=389, interpolation="bicubic"),
    dict(type="torchvision/CenterCrop", size=448),
    dict(type="PILToNumpy", to_bgr=True),
    dict(type="PackInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
