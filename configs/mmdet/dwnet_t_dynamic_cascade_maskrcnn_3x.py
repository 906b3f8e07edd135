"""Cascade Mask R-CNN with dynamic DWNet-T on COCO, 36 epochs.

Published: 50.5 box AP, 43.7 mask AP (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe, SyncBN, padding, weight decay and the start from an ImageNet checkpoint are as in
dwnet_t_cascade_maskrcnn_3x.py.
"""

_base_ = "./dwnet_t_cascade_maskrcnn_3x.py"

model = dict(backbone=dict(spatial="dynamic"))
