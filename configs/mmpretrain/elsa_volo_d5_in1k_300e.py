"""ELSA-VOLO-D5 on ImageNet-1k, 224 pixels, 300 epochs and 10 of cool-down.

Published: the article has a figure, but only in a picture that we could not read. Not reproduced
here.

The recipe, its differences and our choices are as in elsa_volo_d1_in1k_300e.py, with the drop path
and test images of volo_d5_in1k_300e.py. The article confirms the learning rate of 8e-4. As in the
article, and unlike the smaller models, the run averages the weights. The decay of 0.99992 is
VOLO's. Validation and test use the average, and the checkpoint holds it as ``state_dict``.
"""

_base_ = "./volo_d5_in1k_300e.py"

model = dict(backbone=dict(type="mmlocal.ELSAVOLO"))

# MMEngine's momentum is 1 - decay.
custom_hooks = [dict(type="EMAHook", momentum=8e-5)]
