"""Mask R-CNN with QnA-ViT-Small on COCO, 12 epochs.

Our extension: the settings are as in qna_vit_t_maskrcnn_1x.py.
"""

_base_ = "./qna_vit_t_maskrcnn_1x.py"

model = dict(backbone=dict(arch="small", drop_path_rate=0.2))
