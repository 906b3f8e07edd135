"""QnA-ViT-Tiny with 64 channels per head of attention on ImageNet-1k, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). The published models have 32 channels. The
figure is in a table that we could not read.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_attn_heads_d16_in1k_300e.py"

model = dict(backbone=dict(arch=dict(attn_heads=(1, 2, 4, 8))))
