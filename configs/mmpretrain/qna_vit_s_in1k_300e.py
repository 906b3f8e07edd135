"""QnA-ViT-Small on ImageNet-1k, 224 pixels, 300 epochs.

Published: 83.2 % top-1 (README of the official code, moabarar/qna). Not reproduced here.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_in1k_300e.py"

model = dict(backbone=dict(arch="small", drop_path_rate=0.2))
