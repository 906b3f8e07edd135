"""UPerNet with dynamic DWNet-T on ADE20K, 160k iterations.

Published: 45.7 mIoU with one scale (README of the official code, Atten4Vis/DemystifyLocalViT). Not
reproduced here.

The recipe, SyncBN, padding, weight decay and the start from an ImageNet checkpoint are as in
dwnet_t_upernet_160k.py.
"""

_base_ = "./dwnet_t_upernet_160k.py"

model = dict(backbone=dict(spatial="dynamic"))
