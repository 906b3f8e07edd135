"""QnA-ViT-Tiny with 16 channels per head of attention on ImageNet-1k, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). The published models have 32 channels. The
figure is in a table that we could not read.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_in1k_300e.py"

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=64,
            attn_depths=(0, 0, 4, 2),
            qna_depths=(2, 3, 2, 0),
            attn_heads=(4, 8, 16, 32),
            qna_heads=(8, 16, 32, 64),
        )
    )
)
