# Swin's schedule for 160k iterations of 16 images.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

# The two factors multiply. As in MMCV 1.x, the rate falls linearly from the first iteration on, not
# from the end of the warm-up.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=0, end=160000),
]

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.00006, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            "absolute_pos_embed": dict(decay_mult=0.0),
            "norm": dict(decay_mult=0.0),
        }
    ),
)

# 8 GPUs with 2 images each
auto_scale_lr = dict(enable=False, base_batch_size=16)
