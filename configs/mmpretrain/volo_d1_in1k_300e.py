"""VOLO-D1 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 84.2 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

This is the official recipe, for 8 GPUs with 128 images each. It trains in mixed precision (add
``--amp`` on a GPU) with seed 42 (``--cfg-options randomness.seed=42``). It reads the official label
maps of ImageNet (NFNet-F6, about 8 GB), which are not part of the data set: see
``mmlocal.LoadTokenLabels``. Without them, all tokens learn the label of the image::

    --cfg-options train_dataloader.dataset.pipeline.4.label_root=None

The published figure is with label maps. Differences from the official run:

* A label map follows the flip and the crop of its image, and not the rotations, shears and shifts
  of RandAugment. The official RandAugment takes the label map, too.
* RandAugment always interpolates bicubically.
* The learning rate is up to 1 % lower during the warm-up.

As in the official run, x and y of a crop are exchanged when its label map is cropped. To crop the
right place: ``--cfg-options model.head.swap_axes=False``.
"""

_base_ = [
    "./_base_/models/token_label.py",
    "./_base_/datasets/imagenet_token_label_224.py",
    "./_base_/schedules/adamw_volo_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.VOLO", arch="d1", drop_path_rate=0.1),
    head=dict(in_channels=384),
)

optim_wrapper = dict(optimizer=dict(lr=1.6e-3))
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-6 / 1.6e-3),
    _base_.param_scheduler[1],
]
