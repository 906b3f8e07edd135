"""QnA-ViT-Base on ImageNet-1k, fine-tuned for 30 epochs at 384 pixels.

Our extension: the recipe is official, but the windows are ours, and no figure that we could check
is published for them. At 384 pixels the last two maps have 24 and 12 tokens a side. The released
windows of 14 and 7 do not divide them, and the official code refuses them. Windows of 24 and 12
keep attention global in these maps, as at 224 pixels.

The learning rate is constant, 4e-5 for 1024 images per step, with hardly any weight decay. The
decay spares the queries too. All else, ``--amp`` included, is as in qna_vit_t_in1k_300e.py.

The run starts from a checkpoint of qna_vit_b_in1k_300e.py, and stops with an error if there is
none. The position tables are resized to the new windows. To name another file, such as a converted
official checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = [
    "./_base_/models/pooled_linear.py",
    "./_base_/datasets/imagenet_qna_384.py",
    "./_base_/schedules/adamw_qna_300e.py",
    "./_base_/default_runtime.py",
]

checkpoint = "work_dirs/qna_vit_b_in1k_300e/epoch_300.pth"
model = dict(
    backbone=dict(
        type="mmlocal.QnAViT",
        arch="base",
        window_sizes=(7, 7, 24, 12),
        out_indices=(3,),
        drop_path_rate=0.5,
        init_cfg=dict(type="Pretrained", checkpoint=checkpoint, prefix="backbone."),
    ),
    head=dict(
        in_channels=768,
        init_cfg=dict(_delete_=True, type="Pretrained", checkpoint=checkpoint, prefix="head."),
    ),
)

train_cfg = dict(max_epochs=30)
param_scheduler = []
optim_wrapper = dict(
    optimizer=dict(lr=4e-5, weight_decay=1e-8),
    paramwise_cfg=dict(custom_keys={"query": dict(decay_mult=0.0)}),
)
