"""A narrow Swin frame on the generated shapes, for `make compare`: one run takes a minute.

``operators`` lists what tools/compare_operators.py trains when its command line names none. Each
entry becomes ``mixers`` of the backbone. All else is equal for all of them. No paper has such a
model. Depth-wise operators stand between two projections, as attention does.
"""

_base_ = ["./elsa_swin_nano_shapes.py"]

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmlocal.LocalSwin",
        arch=dict(embed_dims=32, depths=[1, 1, 2, 1], num_heads=[2, 4, 8, 16]),
        mixers=dict(type="WindowAttention", fit_window=True),
        out_indices=(3,),
        mlp_ratio=2.0,
        drop_path_rate=0.0,
        # The usual standard deviation of 0.02 suits three times the channels.
        init_cfg=[
            dict(type="Xavier", layer="Linear", distribution="uniform", bias=0.0),
            dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
        ],
    ),
)

max_epochs = 15
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(
        type="CosineAnnealingLR",
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        convert_to_iter_based=True,
    ),
]

operators = {
    "WindowAttention": dict(type="WindowAttention", fit_window=True),
    "HaloAttention": dict(type="HaloAttention"),
    "GlobalAttention": dict(type="GlobalAttention"),
    "ELSA": dict(type="ELSA", group_width=4),
    "QnA": dict(type="QnA", kernel_size=7),
    "OutlookAttention": dict(type="OutlookAttention"),
    "Net7-N": dict(type="UnifiedLocalAttention", preset="net7-n"),
    "DepthwiseConv": dict(type="ProjectedMixer", mixer=dict(type="DepthwiseConv")),
    "DynamicDepthwiseConv": dict(type="ProjectedMixer", mixer=dict(type="DynamicDepthwiseConv")),
    "Involution": dict(type="ProjectedMixer", mixer=dict(type="Involution")),
    "DDF": dict(type="ProjectedMixer", mixer=dict(type="DDF")),
}
