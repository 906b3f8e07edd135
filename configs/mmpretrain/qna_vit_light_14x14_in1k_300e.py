"""The light QnA-ViT with windows of 14x14 on ImageNet-1k, 224 pixels, 300 epochs.

An ablation of the paper of QnA (Arar et al. 2022). The paper keeps the windows of early stages at
14x14 or less. The figure is in a table that we could not read.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_light_in1k_300e.py"

model = dict(backbone=dict(window_sizes=(14, 14, 14, 7)))
