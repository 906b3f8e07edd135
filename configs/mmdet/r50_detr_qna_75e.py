"""DETR-QnA with ResNet-50 on COCO, 75 epochs.

Our extension: the encoder of qna_vit_t_7x7_detr_qna_75e.py on the backbone of r50_detr_75e.py.
"""

_base_ = "./r50_detr_75e.py"

model = dict(
    type="mmlocal.DETRQnA",
    encoder=dict(
        num_layers=8,
        qna_indices=(0, 1, 2, 3),
        qna_cfg=dict(num_heads=32, kernel_size=7),
    ),
)
