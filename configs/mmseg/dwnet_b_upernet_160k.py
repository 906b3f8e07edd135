"""UPerNet with DWNet-B on ADE20K, 160k iterations.

Published: 48.3 mIoU with one scale (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe, SyncBN, padding, weight decay and the start from an ImageNet checkpoint are as in
dwnet_t_upernet_160k.py.
"""

_base_ = "./dwnet_t_upernet_160k.py"

model = dict(
    backbone=dict(arch="base"),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
