"""VOLO-D5 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 86.1 % top-1 (README of the official code, sail-sg/volo). Not reproduced here.

The recipe and its differences are as in volo_d4_in1k_300e.py, with a learning rate of 8e-4 and a
drop path of 0.75. The official README has no command for D5: the drop path comes from the article,
unchecked.
"""

_base_ = "./volo_d4_in1k_300e.py"

model = dict(backbone=dict(arch="d5", drop_path_rate=0.75))

optim_wrapper = dict(optimizer=dict(lr=8e-4))
param_scheduler = [
    dict(_base_.param_scheduler[0], start_factor=1e-6 / 8e-4),
    _base_.param_scheduler[1],
]
