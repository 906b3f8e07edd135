# The paper's schedule for DETR: 75 epochs of 32 images per step.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=75, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = [
    dict(type="MultiStepLR", begin=0, end=75, by_epoch=True, milestones=[50], gamma=0.1)
]

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.0001, betas=(0.9, 0.999), weight_decay=0.0001),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.1)}),
)

# 8 GPUs with 4 images each
auto_scale_lr = dict(enable=False, base_batch_size=32)
