"""UPerNet with QnA-ViT-Tiny on ADE20K, 160k iterations.

Our extension: the paper trains no segmentor. The settings are Swin's for this head, with the drop
path of classification. Weight decay spares the backbone's norms, as in Swin, and its tables, as in
the official code of QnA. Window attention takes images of any size. It cuts a map into windows as
equal as possible, of at most 14 tokens a side in stage 3 and 7 in stage 4.

Start from an ImageNet checkpoint. Without one, training begins slowly. Its first gradients are as
small with padded images as without padding: see ``mmlocal.layers.LayerNorm``.

Test protocol and the start from an ImageNet checkpoint are as in elsa_swin_t_upernet_160k.py.
"""

_base_ = [
    "./_base_/models/upernet.py",
    "./_base_/datasets/ade20k.py",
    "./_base_/schedules/adamw_160k.py",
    "./_base_/default_runtime.py",
]

model = dict(
    backbone=dict(type="mmlocal.QnAViT", arch="tiny", drop_path_rate=0.05),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)

optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            "attn_scale_table": dict(decay_mult=0.0),
            "rel_pos_table": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
        }
    )
)
