"""QnA-ViT-Small on ImageNet-1k, fine-tuned for 30 epochs at 384 pixels.

Our extension: the official code has a config of this step for Base only. Recipe, windows and
starting point are as in qna_vit_b_in1k_30e_384.py.
"""

_base_ = "./qna_vit_b_in1k_30e_384.py"

checkpoint = "work_dirs/qna_vit_s_in1k_300e/epoch_300.pth"
model = dict(
    backbone=dict(arch="small", drop_path_rate=0.2, init_cfg=dict(checkpoint=checkpoint)),
    head=dict(in_channels=512, init_cfg=dict(checkpoint=checkpoint)),
)
