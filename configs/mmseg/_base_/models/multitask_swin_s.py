# Swin-S, with 48,838,602 parameters.
_base_ = "./multitask_swin_t.py"

model = dict(backbone=dict(depths=[2, 2, 18, 2]))
