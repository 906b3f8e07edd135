"""UPerNet with ELSA-Swin-B on ADE20K, 160k iterations.

Our extension: the paper trains no segmentor on ELSA-Swin-B. Everything but the backbone is as in
elsa_swin_s_upernet_160k.py, including the drop path rate of 0.3.

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
    backbone=dict(type="mmlocal.ELSASwin", arch="base", drop_path_rate=0.3),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
