"""QnA-ViT-Base on ImageNet-1k, 224 pixels, 300 epochs.

Published: 83.9 % top-1 (README of the official code, moabarar/qna; a public listing of the
article has 83.7). Not reproduced here.

The recipe and its differences are as in qna_vit_t_in1k_300e.py, with 20 epochs of warm-up.
"""

_base_ = "./qna_vit_t_in1k_300e.py"

model = dict(
    backbone=dict(arch="base", drop_path_rate=0.5),
    head=dict(in_channels=768),
)

param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=280,
        eta_min=0.0,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
