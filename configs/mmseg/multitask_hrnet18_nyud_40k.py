"""One encoder HRNetV2-W18-small and plain heads for all tasks of NYUD-v2, 40k iterations.

The articles on DeMT and ITSA that we follow give no figures for this row.

No source gives the settings of this baseline. Each task has the head of DeMT on the shared 256
channels, and the schedule is DeMT's.

DeMT's config for this backbone is not published. The learning rate is 0.01, as in ATRC, on
whose code DeMT is built; Bohn et al. train at 0.001.

The official runs start from ImageNet weights::

    --cfg-options model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=open-mmlab://msra/hrnetv2_w18_small
"""

_base_ = [
    "./_base_/models/multitask_hrnet18.py",
    "./_base_/datasets/nyud_multitask.py",
    "./_base_/schedules/sgd_40k.py",
    "./_base_/multitask_runtime.py",
]

model = dict(
    data_preprocessor=dict(size=(425, 560)),
    decode_head=dict(
        tasks=dict(
            semseg=dict(num_classes=40),
            depth=dict(),
            normals=dict(),
            edge=dict(),
        ),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.01))
