# VOLO's schedule: a cosine of 300 epochs of 1024 images per step, then 10 epochs at its end value.
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# Both change by step. The warm-up starts at 1e-6. As in timm, the cosine starts at epoch 0, not
# after the warm-up. Here the two factors multiply. In timm, the warm-up replaces the cosine, so its
# rate is up to 1 % higher until epoch 20, and the same afterwards.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=300,
        eta_min=1e-5,
        begin=0,
        end=300,
        convert_to_iter_based=True,
    ),
]

# timm decays neither tensors of one dimension (biases, normalisation layers) nor the position
# embedding and the class token. Gradients are not clipped.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys={"pos_embed": dict(decay_mult=0.0), "cls_token": dict(decay_mult=0.0)},
    ),
)

# 8 GPUs with 128 images each (of 224 pixels)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
