"""QnA-ViT-Tiny on ImageNet-1k, 224 pixels, 300 epochs.

Published: 81.7 % top-1 (README of the official code, moabarar/qna). Not reproduced here.

This is the official recipe, for 8 GPUs with 128 images each. It trains in mixed precision (add
``--amp`` on a GPU). Weight decay spares only tables (positions, scales of attention). Gradients are
not clipped, and weights are not averaged. Differences from the official code, which is in JAX and
TensorFlow:

* Bicubic resizing has OpenCV's coefficients (a = -0.75, not -0.5). Test images are rounded to the
  nearest whole numbers, not down.
* Contrast and saturation of the colour jitter are OpenMMLab's. Contrast changes about the mean
  grey, not about the mean of each channel. Saturation changes against grey, not in HSV.
* The jitter's second mirroring is left out: it changes nothing after the first.
* Erased rectangles lie inside the image.
* Mixup and CutMix draw one ratio per batch from the Beta distribution. The official code draws one
  per image from an approximation of it.
* Partners in CutMix are random, not taken from the reversed batch.
* The learning rate starts at a millionth of its maximum, not at 0.
* The classifier starts from a normal distribution that is not cut off at two standard deviations.
"""

_base_ = [
    "./_base_/models/pooled_linear_lecun.py",
    "./_base_/datasets/imagenet_qna_224.py",
    "./_base_/schedules/adamw_qna_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmlocal.QnAViT",
        arch="tiny",
        out_indices=(3,),
        drop_path_rate=0.05,
    ),
    head=dict(in_channels=512),
)
