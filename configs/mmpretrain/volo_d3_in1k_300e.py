"""VOLO-D3 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 85.4 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_300e.py, with a learning rate of 1e-3.
"""

_base_ = "./volo_d2_in1k_300e.py"

model = dict(backbone=dict(arch="d3", drop_path_rate=0.5))
