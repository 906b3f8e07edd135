"""Swin-T with four times as many heads in its first three stages on ImageNet-1k, 300 epochs.

Part of the comparison in the paper of ELSA (Zhou et al. 2021). The paper's figure is in a table or
plot that we could not read. The paper varies the channels of a head. Heads of 8 channels are our
choice.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_window_in1k_300e.py"

model = dict(
    backbone=dict(mixers=[*(dict(_base_.window, num_heads=n) for n in (12, 24, 48)), _base_.window])
)
