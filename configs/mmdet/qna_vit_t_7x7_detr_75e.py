"""DETR with QnA-ViT-T of 7x7 windows on COCO, 75 epochs.

Published: +0.4 AP, and +0.7 AP on large objects, over qna_vit_t_detr_75e.py (Learned Queries, Arar
et al. 2022). Not reproduced here. The start and the open points are as in qna_vit_t_detr_75e.py.
"""

_base_ = "./qna_vit_t_detr_75e.py"

model = dict(backbone=dict(arch="tiny_7x7"))
