# An encoder, and a head for several tasks. A config adds the backbone, the tasks and the type of
# the head.

# The official models have SyncBN, which only distributed runs can have. There it replaces BN.
# A distributed run without GPUs needs --cfg-options sync_bn=None.
sync_bn = "torch"
norm_cfg = dict(type="BN", requires_grad=True)

model = dict(
    type="mmlocal.MultiTaskSegmentor",
    data_preprocessor=dict(
        type="mmlocal.MultiTaskDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
    ),
    decode_head=dict(
        type="mmlocal.MultiTaskHead",
        in_index=[0, 1, 2, 3],
        channels=256,
        norm_cfg=norm_cfg,
        align_corners=False,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
