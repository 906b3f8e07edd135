"""DETR-QnA with QnA-ViT-T of 7x7 windows on COCO, 75 epochs.

Published: +0.6 AP over qna_vit_t_7x7_detr_75e.py, +3.2 AP over ResNet-50 (Learned Queries, Arar et
al. 2022). Not reproduced here. The four QnA layers are as in qna_vit_t_detr_qna_75e.py, but with
windows of 7x7. The start and the open points are as in qna_vit_t_detr_75e.py.
"""

_base_ = "./qna_vit_t_7x7_detr_75e.py"

model = dict(
    type="mmlocal.DETRQnA",
    encoder=dict(
        num_layers=8,
        qna_indices=(0, 1, 2, 3),
        qna_cfg=dict(num_heads=32, kernel_size=7),
    ),
)
