"""ELSA-VOLO-D2 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: the article has a figure, but only in a picture that we could not read. Not reproduced
here.

The recipe, its differences and our choices are as in elsa_volo_d1_in1k_300e.py, with VOLO-D2's
learning rate and drop path.
"""

_base_ = "./volo_d2_in1k_300e.py"

model = dict(backbone=dict(type="mmlocal.ELSAVOLO"))
