"""The light QnA-ViT of the paper's ablations on ImageNet-1k, 224 pixels, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). It counts queries on this network: window
attention of 7x7 and QnA of 3x3, 2, 2, 2, 0 blocks of QnA and 1, 1, 5, 2 of attention. As everywhere
in the paper, we count the down-sampling among the blocks of QnA. Two queries are better than one,
and more bring no further gain; the figures are in a plot or table that we could not read. Widths
and heads are QnA-ViT-Tiny's, which is our choice.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_in1k_300e.py"

model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            embed_dims=64,
            attn_depths=(1, 1, 5, 2),
            qna_depths=(1, 1, 1, 0),
            attn_heads=(2, 4, 8, 16),
            qna_heads=(8, 16, 32, 64),
        ),
        window_sizes=(7, 7, 7, 7),
    )
)
