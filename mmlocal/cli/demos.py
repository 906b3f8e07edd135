"""The demos as data: a config for each task of the generated data, and the results to show."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Demo:
    """A config to train on generated data, and the parts of its results to show.

    Args:
        config: name of the config, for the data in ``data/shapes``.
        metrics: name in the summary -> name in the results of the test.
        losses: names in the training log, to plot.
        curves: names in the validation log, to plot.
        scale: factor that brings the metrics to [0, 1].
        columns: pictures per row of the contact sheet.
    """

    config: str
    metrics: dict[str, str]
    losses: tuple[str, ...]
    curves: tuple[str, ...]
    scale: float = 1.0
    columns: int = 2


DEMOS = {
    "det": Demo(
        config="elsa_swin_nano_maskrcnn_shapes",
        metrics={
            f"{kind}_{name}": f"coco/{kind}_{key}"
            for kind in ("bbox", "segm")
            for name, key in (
                ("AP", "mAP"),
                ("AP50", "mAP_50"),
                ("AP75", "mAP_75"),
                ("APs", "mAP_s"),
                ("APm", "mAP_m"),
                ("APl", "mAP_l"),
            )
        },
        losses=("loss", "loss_cls", "loss_bbox", "loss_mask", "loss_rpn_cls", "loss_rpn_bbox"),
        curves=("coco/bbox_mAP", "coco/bbox_mAP_50", "coco/segm_mAP", "coco/segm_mAP_50"),
    ),
    "seg": Demo(
        config="elsa_swin_nano_upernet_shapes",
        metrics={"mIoU": "mIoU", "mAcc": "mAcc", "aAcc": "aAcc"},
        losses=("loss", "decode.loss_ce", "aux.loss_ce"),
        curves=("mIoU", "mAcc", "aAcc"),
        scale=0.01,
    ),
    "cls": Demo(
        config="elsa_swin_nano_shapes",
        metrics={"top1": "accuracy/top1"},
        losses=("loss",),
        curves=("accuracy/top1",),
        scale=0.01,
        columns=6,
    ),
}
