"""A narrow QnA-ViT classifier on the generated shapes.

The paper has no such model. It is narrow, and trains from scratch on two CPU cores in minutes::

    python tools/demo.py cls --config qna_vit_nano_shapes
"""

_base_ = "./elsa_swin_nano_shapes.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmlocal.QnAViT",
        arch=dict(
            embed_dims=32,
            attn_depths=[0, 0, 1, 1],
            qna_depths=[1, 1, 1, 0],
            attn_heads=[1, 2, 4, 8],
            qna_heads=[4, 8, 16, 32],
        ),
        out_indices=(3,),
        mlp_ratio=2.0,
        drop_path_rate=0.0,
    ),
)
