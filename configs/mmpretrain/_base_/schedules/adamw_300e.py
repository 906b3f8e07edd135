# timm's cosine schedule of 300 epochs of 1024 images per step, then 10 epochs at its end value.
train_cfg = dict(by_epoch=True, max_epochs=310, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# Both change by epoch. As in timm, the cosine starts at epoch 0, not after the warm-up. Here the
# two factors multiply. In timm, the warm-up replaces the cosine, so its rate is up to 1 % higher
# until epoch 20, and the same afterwards. (`end` is one more than the epoch with the end value.)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, begin=0, end=21),
    dict(type="CosineAnnealingLR", T_max=300, eta_min=1e-5, by_epoch=True, begin=0, end=301),
]

# timm decays neither tensors of one dimension (biases, normalisation layers) nor position
# embeddings. It decays bias tables and ghost heads.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        flat_decay_mult=0.0, custom_keys={"absolute_pos_embed": dict(decay_mult=0.0)}
    ),
    clip_grad=dict(max_norm=5.0),
)

# 8 GPUs with 128 images each (of 224 pixels)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
