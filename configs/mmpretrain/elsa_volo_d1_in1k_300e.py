"""ELSA-VOLO-D1 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: 84.7 % top-1 (ELSA, Zhou et al. 2021). Not reproduced here.

The recipe and its differences are as in volo_d1_in1k_300e.py. The article replaces all outlook
attention by ELSA and adjusts "several hyper-parameters" of the ELSA blocks, which it does not name.
No code was released. The kernel of 5 taps, groups of 8 channels and both ghost heads are our
choice: see ``mmlocal.ELSAVOLO``. The article confirms the learning rate of 1.6e-3.
"""

_base_ = "./volo_d1_in1k_300e.py"

model = dict(backbone=dict(type="mmlocal.ELSAVOLO"))
