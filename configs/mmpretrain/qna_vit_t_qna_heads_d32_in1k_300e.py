"""QnA-ViT-Tiny with 32 channels per head of QnA on ImageNet-1k, 224 pixels, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). Its best head has 8 channels, as in
QnA-ViT-Tiny. The figure is in a table that we could not read.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_qna_heads_d16_in1k_300e.py"

model = dict(backbone=dict(arch=dict(qna_heads=(2, 4, 8, 16))))
