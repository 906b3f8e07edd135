"""DWNet-T on ImageNet-1k, 224 pixels, 300 epochs.

Published: 81.2 % top-1 (README of the official code, Atten4Vis/DemystifyLocalViT). Not reproduced
here.

This is the official recipe, for 8 GPUs with 128 images each. It is Swin's: the cosine has 300
epochs, 20 of them warm-up, without a cool-down. It trains in mixed precision (add ``--amp`` on a
GPU). Weight decay spares tensors of one dimension: all norms, BatchNorm included, and all biases.
Differences from the official run:

* The learning rate is up to 1 % lower during the warm-up.
* The noise of erased areas is rounded to whole numbers and clipped to 0 ... 255.
* Images are mixed with random partners. The official run takes the partners from the reversed
  batch.
"""

_base_ = [
    "./_base_/models/pooled_linear_mixed.py",
    "./_base_/datasets/imagenet_swin_224.py",
    "./_base_/schedules/adamw_dwnet_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmlocal.DWNet",
        arch="tiny",
        pad_size_divisor=1,
        out_norm="LN",
        out_indices=(3,),
        drop_path_rate=0.2,
    ),
    head=dict(in_channels=768),
)
