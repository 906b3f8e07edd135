# Swin-T, with 27,520,698 parameters. A norm follows each of its four maps. MMSegmentation's class
# reads the UPerNet checkpoints from which the official runs start.
_base_ = "./multitask.py"

model = dict(
    backbone=dict(
        type="SwinTransformer",
        embed_dims=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.1,
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
