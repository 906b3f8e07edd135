"""Swin-T with window attention and an additive ghost head on ImageNet-1k, 224 pixels, 300 epochs.

Part of the comparison in the paper of ELSA (Zhou et al. 2021). The paper's figure is in a table or
plot that we could not read. The number of maps is our choice.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_window_in1k_300e.py"

mixer = dict(type="UnifiedLocalAttention", preset="lsa", gamma=1)
model = dict(backbone=dict(mixers=[mixer, mixer, mixer, _base_.window]))
