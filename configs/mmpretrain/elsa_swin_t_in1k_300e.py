"""ELSA-Swin-T on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 82.7 % top-1 (README of the official code, damo-cv/ELSA). Not reproduced here.

This is the official recipe, for 8 GPUs with 128 images each. It trains in mixed precision (add
``--amp`` on a GPU) with seed 42 (``--cfg-options randomness.seed=42``). As in the official run, an
epoch has 1,251 steps, and images are erased after they are mixed, with noise that is not clipped.
Differences from the official run:

* RandAugment always interpolates bicubically.
* The learning rate is up to 1 % lower during the warm-up.
* Images are mixed after their normalization, with random partners. The official run mixes them
  before it, with partners from the reversed batch, and rounds to whole numbers.
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_224.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmlocal.ELSASwin",
        arch="tiny",
        fit_window=True,
        out_indices=(3,),
        drop_path_rate=0.1,
    ),
    head=dict(in_channels=768),
)
