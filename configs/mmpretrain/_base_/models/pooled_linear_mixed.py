# As pooled_linear.py, but training mixes only: the data set erases.
_base_ = "./pooled_linear.py"

model = dict(
    train_cfg=dict(
        _delete_=True,
        # Each batch gets one of the two, with equal chance.
        augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)],
    )
)
