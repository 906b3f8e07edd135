# VOLO's fine-tuning: 30 epochs with 5 of warm-up from 1e-6, then 10 epochs at the end value.
# The rate is up to 2 % higher than timm's after the warm-up, because MMEngine computes each rate
# from the one before it.
_base_ = "./adamw_volo_300e.py"

train_cfg = dict(max_epochs=40)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6 / 8e-6, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type="CosineAnnealingLR",
        T_max=30,
        eta_min=4e-6,
        begin=0,
        end=30,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(optimizer=dict(lr=8e-6, weight_decay=1e-8))
