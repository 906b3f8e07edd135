"""UPerNet with ELSA-Swin-S on ADE20K, 160k iterations.

Published: 50.4 mIoU with six scales and flip (README of the official code, damo-cv/ELSA; the
article, Zhou et al. 2021, has 50.3). Not reproduced here.

Test protocol, weight decay and the start from an ImageNet checkpoint are as in
elsa_swin_t_upernet_160k.py.
"""

_base_ = [
    "./_base_/models/upernet.py",
    "./_base_/datasets/ade20k.py",
    "./_base_/schedules/adamw_160k.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.ELSASwin", arch="small", drop_path_rate=0.3),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
