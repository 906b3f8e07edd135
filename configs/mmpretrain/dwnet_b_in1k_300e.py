"""DWNet-B on ImageNet-1k, 224 pixels, 300 epochs.

Published: 83.2 % top-1 (README of the official code, Atten4Vis/DemystifyLocalViT). Not reproduced
here.

The recipe and its differences are as in dwnet_t_in1k_300e.py, with a drop path of 0.5. The official
run has 16 GPUs with 64 images each, and full precision: the README reports abnormal gradients of
mixed precision. The newest official script accumulates two steps in mixed precision, which doubles
the learning rate; we follow the README.
"""

_base_ = "./dwnet_t_in1k_300e.py"

model = dict(backbone=dict(arch="base", drop_path_rate=0.5), head=dict(in_channels=1024))
