"""Swin-T by mmlocal's frame on ImageNet-1k, 224 pixels, 300 epochs: the base of a comparison.

The configs ``swin_t_*`` put another operator in the first three stages, as ELSA-Swin does. The last
stage keeps window attention, whose windows cover its map of 7x7. All else stays the same.

The recipe and its differences are as in elsa_swin_t_in1k_300e.py, which is one of the operators.
Its drop path rate is 0.1; the official Swin-T has 0.2. The published ELSA-Swin gains up to 1.4 %
top-1 over Swin Transformer (abstract of ELSA, Zhou et al. 2021).
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_224.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/default_runtime.py",
]

# At 224 pixels, the windows of the last stage do not shift.
window = dict(type="WindowAttention", fit_window=True)
model = dict(
    backbone=dict(
        type="mmlocal.LocalSwin",
        arch="tiny",
        mixers=window,
        out_indices=(3,),
        drop_path_rate=0.1,
    ),
    head=dict(in_channels=768),
)
