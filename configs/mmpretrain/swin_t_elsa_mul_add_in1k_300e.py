"""Swin-T with ELSA and both ghost heads on ImageNet-1k, 224 pixels, 300 epochs.

Part of the comparison in the paper of ELSA (Zhou et al. 2021). The paper's figure is in a table or
plot that we could not read. ELSA-Swin-T has the additive ghost head alone:
elsa_swin_t_in1k_300e.py.

The recipe is as in swin_t_window_in1k_300e.py.
"""

_base_ = "./swin_t_window_in1k_300e.py"

mixer = dict(
    type="ELSA",
    kernel_size=7,
    group_width=4,
    qkv_bias=True,
    qk_scale=1.0,
    lam=1.0,
    gamma=1.0,
)
model = dict(backbone=dict(mixers=[mixer, mixer, mixer, _base_.window]))
