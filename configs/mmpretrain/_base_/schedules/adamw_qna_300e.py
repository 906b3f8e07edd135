# QnA's schedule of 300 epochs of 1024 images per step.
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=5)
val_cfg = dict()
test_cfg = dict()

# Both change by step. The official warm-up starts at 0. MMEngine's warm-up cannot start at 0.
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=295,
        eta_min=0.0,
        begin=5,
        end=300,
        convert_to_iter_based=True,
    ),
]

# Weight decay spares tables only. It acts on norms, biases and queries.
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.002, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        custom_keys={
            "attn_scale_table": dict(decay_mult=0.0),
            "rel_pos_table": dict(decay_mult=0.0),
            "relative_position_bias_table": dict(decay_mult=0.0),
        }
    ),
)

# 8 GPUs with 128 images each (of 224 pixels)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
