# As pooled_linear.py, but for QnA: the linear layer is initialised as in Flax.
_base_ = "./pooled_linear.py"

model = dict(
    head=dict(
        # This is LeCun normal. Flax also cuts it off at two standard deviations.
        init_cfg=dict(
            _delete_=True,
            type="Kaiming",
            layer="Linear",
            mode="fan_in",
            nonlinearity="linear",
            distribution="normal",
        ),
    ),
    # QnA's runs erase each image before it is mixed.
    train_cfg=dict(augments=dict(erase_first=True)),
)
