# Swin's schedule: a cosine of 300 epochs of 1024 images per step. The optimizer is timm's.
_base_ = "./adamw_300e.py"

train_cfg = dict(max_epochs=300)

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
