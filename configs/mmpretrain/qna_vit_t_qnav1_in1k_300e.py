"""QnA-ViT-Tiny with the head ``qnav1`` on ImageNet-1k, 224 pixels, 300 epochs.

Our extension: the official code has this head, but no model with it is published. One QnA window
over the whole last map takes the place of the average. It takes images of 224 pixels only.

The recipe and its differences are as in qna_vit_t_in1k_300e.py.
"""

_base_ = "./qna_vit_t_in1k_300e.py"

model = dict(
    neck=dict(_delete_=True, type="mmlocal.QnAPooling", in_channels=512, num_heads=64, map_size=7),
)
