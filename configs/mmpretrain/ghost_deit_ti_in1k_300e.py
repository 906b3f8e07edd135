"""DeiT-Ti without class token and with ELSA's ghost head, on ImageNet-1k, 224 pixels, 310 epochs.

The experiment is that of the paper's appendix C (ELSA, Zhou et al. 2021): the ghost head doubles
the heads of global attention, after the softmax. The accuracy published there was not at hand, no
code was released for it, and nothing is reproduced here.

Not known and therefore ours: the form and start of the static matrices (see ``GhostAttention``),
average pooling of all tokens in place of the class token, and the recipe, which is that of the
ELSA-Swin-T config (the paper's own for ImageNet) with DeiT-Ti's drop path of 0.1. DeiT's own recipe
differs by 5 epochs of warm-up in place of 20, repeated augmentation and no clipping of gradients.
LayerNorm has an epsilon of 1e-5, DeiT's has 1e-6.
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_224.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.GhostDeiT", arch="tiny", drop_path_rate=0.1),
    head=dict(in_channels=192),
)
