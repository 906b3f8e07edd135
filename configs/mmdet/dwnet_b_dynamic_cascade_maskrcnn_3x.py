"""Cascade Mask R-CNN with dynamic DWNet-B on COCO, 36 epochs.

Published: 51.2 box AP, 44.4 mask AP (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe, SyncBN, padding, weight decay and the start from an ImageNet checkpoint are as in
dwnet_t_cascade_maskrcnn_3x.py, with a drop path of 0.3.
"""

_base_ = "./dwnet_b_cascade_maskrcnn_3x.py"

model = dict(backbone=dict(spatial="dynamic"))
