"""QnA-ViT-Tiny with stand-alone self-attention in place of QnA on ImageNet-1k, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). QnA stays in the down-sampling, and heads have
the 32 channels of attention, which is our choice. The figure is in a table that we could not read.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_in1k_300e.py"

model = dict(
    backbone=dict(
        mixers=[dict(type="SASA", kernel_size=3, num_heads=n) for n in (2, 4, 8, 16)],
    )
)
