"""A few steps of the demo: does training work at all? Its metrics mean nothing."""

_base_ = "./elsa_swin_nano_maskrcnn_shapes.py"

model = dict(
    backbone=dict(arch=dict(embed_dims=16, depths=[1, 1, 1, 2])),
    neck=dict(in_channels=[16, 32, 64, 128]),
    # After so little training, all scores are low.
    test_cfg=dict(rcnn=dict(score_thr=0.0)),
)
train_cfg = dict(max_epochs=3, val_interval=3)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1))
