"""QnA-ViT-Tiny, down-sampled by NesT's layers, on ImageNet-1k, 224 pixels, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). It replaces the down-sampling by QnA with the
3x3 convolution, LayerNorm and max-pooling of NesT. It finds QnA 0.7 % better in top-1 at equal
cost. This network is lighter than QnA-ViT-Tiny, because no MLP belongs to a convolution.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_in1k_300e.py"

model = dict(backbone=dict(downsample="nest"))
