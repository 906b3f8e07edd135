"""Swin-T with inhomogeneous dynamic depth-wise convolution on ImageNet-1k, 224 pixels, 300 epochs.

Our extension: as far as we know, the paper of ELSA does not have this operator. The operator stands
between the two projections of attention, which is our choice.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_window_in1k_300e.py"

mixer = dict(type="ProjectedMixer", mixer=dict(type="InhomogeneousDepthwiseConv"))
model = dict(backbone=dict(mixers=[mixer, mixer, mixer, _base_.window]))
