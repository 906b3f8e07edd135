"""Dynamic DWNet-B on ImageNet-1k, 224 pixels, 300 epochs.

Published: 83.2 % top-1 (README of the official code, Atten4Vis/DemystifyLocalViT). Not reproduced
here.

The recipe and its differences are as in dwnet_b_in1k_300e.py. The newest official code builds the
static network for this experiment. This is the dynamic network of the article and the README.
"""

_base_ = "./dwnet_b_in1k_300e.py"

model = dict(backbone=dict(spatial="dynamic"))
