"""VOLO-D1 with depth-wise convolution in place of outlook attention, on ImageNet-1k.

Our extension: the paper of ELSA (Zhou et al. 2021, table 5) compares operators in this place, but
we could not read its list and figures, which are in a picture. The operator stands between the two
projections of attention, which is our choice.

The recipe and its differences are as in volo_d1_in1k_300e.py.
"""

_base_ = "./volo_d1_in1k_300e.py"

model = dict(backbone=dict(mixer=dict(type="ProjectedMixer", mixer=dict(type="DepthwiseConv"))))
