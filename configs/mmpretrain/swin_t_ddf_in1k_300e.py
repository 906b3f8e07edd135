"""Swin-T with decoupled dynamic filters on ImageNet-1k, 224 pixels, 300 epochs.

Part of the comparison in the paper of ELSA (Zhou et al. 2021). The paper's figure is in a table or
plot that we could not read. The operator stands between the two projections of attention, which is
our choice.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_window_in1k_300e.py"

mixer = dict(type="ProjectedMixer", mixer=dict(type="DDF"))
model = dict(backbone=dict(mixers=[mixer, mixer, mixer, _base_.window]))
