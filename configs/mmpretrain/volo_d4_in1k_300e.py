"""VOLO-D4 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 85.7 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_300e.py. The official README has no command
for D4: the learning rate of 1e-3 and the drop path of 0.5 come from the article, unchecked. As in
the official code, test images are resized to 194 pixels and get a black border.
"""

_base_ = [
    "./_base_/models/token_label.py",
    "./_base_/datasets/imagenet_token_label_224.py",
    "./_base_/schedules/adamw_volo_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.VOLO", arch="d4", drop_path_rate=0.5),
    head=dict(in_channels=768),
)

test_pipeline = [
    dict(type="LoadImageFromFile"),
    # 224 pixels are 115 % of this edge. The crop adds a black border.
    dict(type="NumpyToPIL", to_rgb=True),
    dict(type="torchvision/Resize", size=194, interpolation="bicubic"),
    dict(type="torchvision/CenterCrop", size=224),
    dict(type="PILToNumpy", to_bgr=True),
    dict(type="PackInputs"),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
