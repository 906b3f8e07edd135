"""Swin-T with Net2 in neighbourhoods on ImageNet-1k, 224 pixels, 300 epochs.

Part of the comparison in the paper of ELSA (Zhou et al. 2021). The paper's figure is in a table or
plot that we could not read. The terms of this network are our reading of the paper, see
mmlocal/layers/unified_presets.py.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_window_in1k_300e.py"

mixer = dict(type="UnifiedLocalAttention", preset="net2-n")
model = dict(backbone=dict(mixers=[mixer, mixer, mixer, _base_.window]))
