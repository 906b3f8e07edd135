"""Swin-T with ELSA and the multiplicative ghost head alone on ImageNet-1k, 224 pixels, 300 epochs.

Part of the comparison in the paper of ELSA (Zhou et al. 2021). The paper's figure is in a table or
plot that we could not read. ELSA-Swin-T has the additive ghost head alone:
elsa_swin_t_in1k_300e.py.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_elsa_mul_add_in1k_300e.py"

mixer = dict(_base_.mixer, gamma=0.0)
model = dict(backbone=dict(mixers=[mixer, mixer, mixer, _base_.window]))
