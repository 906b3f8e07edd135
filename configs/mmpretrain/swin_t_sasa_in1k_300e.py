"""Swin-T with stand-alone self-attention on ImageNet-1k, 224 pixels, 300 epochs.

Our extension: as far as we know, the paper of ELSA does not have this operator.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_window_in1k_300e.py"

mixer = dict(type="SASA", kernel_size=7)
model = dict(backbone=dict(mixers=[mixer, mixer, mixer, _base_.window]))
