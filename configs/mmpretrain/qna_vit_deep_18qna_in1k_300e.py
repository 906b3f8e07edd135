"""QnA-ViT with 18 QnA and 0 attention blocks in stage 3 on ImageNet-1k, 224 pixels, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). Deep networks have 19 blocks in stage 3,
down-sampling included, instead of Tiny's 7. QnA-ViT-Small has 6 of QnA and 12 of attention:
qna_vit_s_in1k_300e.py. This division is our choice. The figure is in a table that we could not
read.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_deep_12qna_in1k_300e.py"

model = dict(backbone=dict(arch=dict(attn_depths=(0, 0, 0, 2), qna_depths=(2, 3, 18, 0))))
