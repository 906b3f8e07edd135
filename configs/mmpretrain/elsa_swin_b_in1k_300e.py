"""ELSA-Swin-B on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 84.0 % top-1, of the averaged weights (README of the official code, damo-cv/ELSA). Not
reproduced here.

The recipe and its differences are as in elsa_swin_t_in1k_300e.py. As in the official run, and
unlike T and S, the run averages the weights (decay 0.99992). Validation and test use the average,
and the checkpoint holds it as ``state_dict``. The official run allows 16 GPUs with 64 images each
instead of 8 with 128.
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
