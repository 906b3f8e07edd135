"""QnA-ViT-Tiny on ImageNet-1k, 224 pixels, 300 epochs.

Published: 81.7 % top-1 (README of the official code, moabarar/qna). Not reproduced here.

The official recipe, for 8 GPUs with 128 images each; it trains in mixed precision (add ``--amp``
on a GPU). Only tables (positions, scales of attention) are exempt from weight decay; gradients are
not clipped and weights not averaged. Differences from the official code, in JAX and TensorFlow:

* bicubic resizing has OpenCV's coefficients (a = -0.75, not -0.5); test images are rounded to whole
  numbers, not cut;
* contrast and saturation of the colour jitter are OpenMMLab's: contrast changes about the mean
  grey, not about the mean of each channel, and saturation against grey, not in HSV. The jitter's
  second mirroring is left out: it changes nothing after the first;
* erased rectangles lie inside the image;
* mixup and CutMix draw one ratio per batch, from the Beta distribution, not one per image from an
  approximation of it; partners in CutMix are random, not taken from the reversed batch;
* the learning rate starts at a millionth of its maximum, not at 0;
* the classifier starts from a normal distribution that is not cut off at two standard deviations.
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
