"""ELSA-Swin-B on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 84.0 % top-1, of the averaged weights (README of the official code, damo-cv/ELSA). Not
reproduced here.

The recipe and its differences: as in elsa_swin_t_in1k_300e.py. As in the official run, and
unlike T and S, the weights are averaged (decay 0.99992) and validation and test use the average;
it is also what the checkpoint holds as ``state_dict``. The official run offers 16 GPUs with 64
images each as an alternative to 8 with 128.
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_224.py",
    "./_base_/schedules/adamw_300e.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        type="mmlocal.ELSASwin",
        arch="base",
        fit_window=True,
        out_indices=(3,),
        drop_path_rate=0.5,
    ),
    head=dict(in_channels=1024),
)

# MMEngine's momentum is 1 - decay.
custom_hooks = [dict(type="EMAHook", momentum=8e-5)]
