"""Image classification with MMPreTrain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mmlocal.errors import UsageError
from mmlocal.libraries.base import Library
from mmlocal.libraries.config_parts import metrics_of, type_name, visualization_hook, with_flips
from mmlocal.libraries.demo import Demo
from mmlocal.libraries.registry import register_library

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mmengine.config import Config, ConfigDict
    from mmengine.visualization import Visualizer
    from torch import nn

    from mmlocal.cli.data.datasets import DataSet
    from mmlocal.cli.data.report import Findings

_LAYOUT = (
    "ImageNet-1k",
    """
    {root}
    ├── train
    │   ├── n01440764/*.JPEG
    │   └── ... one folder per class
    └── val
        ├── n01440764/*.JPEG
        └── ... one folder per class""",
)


@register_library
class MMPreTrain(Library):
    """MMPreTrain."""

    name = "mmpretrain"
    packages = ("torch", "numpy", "torchvision", "mmengine", "mmcv", "mmpretrain")
    modules = ("mmpretrain", "mmpretrain.models", "mmpretrain.datasets")
    arguments = frozenset({"out_item", "interval", "rescale_factor"})
    heads = ("head",)
    downloads = frozenset({"CIFAR10", "CIFAR100", "FashionMNIST", "MNIST"})
    demo = Demo(
        name="cls",
        title="a classifier",
        tasks=("cls",),
        config="elsa_swin_nano_shapes",
        metrics={"top1": "accuracy/top1"},
        losses={"loss": "cross-entropy"},
        curves={"accuracy/top1": "top-1 accuracy"},
        scale=0.01,
        size="cls_size",
    )

    def takes_pretrained(self, backbone: dict) -> bool:
        """mmpretrain loads ``model.pretrained`` as the weights of the whole model."""
        return True

    def complete_loader(self, loader: ConfigDict, training: bool) -> None:
        """Add the defaults of mmpretrain's tools, because its configs rely on them."""
        loader.setdefault("pin_memory", True)
        loader.setdefault("collate_fn", {"type": "default_collate"})
        if training:
            loader.setdefault("persistent_workers", loader.get("num_workers", 0) > 0)

    def check_output(self, out: str, out_item: str | None = None) -> None:
        """Check the name of a pickle of predictions, or of a file of metrics."""
        if out_item != "metrics":
            super().check_output(out, out_item)
        elif not out.endswith((".json", ".yml", ".yaml", ".pkl")):
            raise UsageError(f"metrics are written as .json, .yml or .pkl, got {out!r}", "out")

    def show_predictions(
        self,
        cfg: Config,
        show: bool,
        show_dir: str | None,
        wait_time: float,
        interval: int | None = None,
    ) -> None:
        """Set up mmpretrain's hook, which has its own interval."""
        visualization_hook(cfg).update(
            enable=True,
            show=show,
            wait_time=wait_time,
            out_dir=show_dir,
            interval=interval or 1,
        )

    def default_tta(self, pipeline: list[dict]) -> tuple[dict, list[dict]]:
        """Average the scores of an image and its mirror image."""
        model = {"type": "mmpretrain.AverageClsScoreTTA"}
        return model, with_flips(pipeline[:-1], pipeline[-1])

    def draw(
        self,
        visualizer: Visualizer,
        image: np.ndarray,
        sample: Any,
        rescale_factor: float | None = None,
        **where: Any,
    ) -> None:
        """Draw the name of the class."""
        visualizer.visualize_cls(
            image, sample, draw_pred=False, rescale_factor=rescale_factor, **where
        )

    def draw_prediction(self, visualizer: Visualizer, image: np.ndarray, sample: Any) -> np.ndarray:
        """Draw the name of the class, or the picture that an auto-encoder makes."""
        if "pred_image" in sample:
            return (255 * sample.pred_image).round().byte().permute(1, 2, 0).numpy()
        side = max(384, min(image.shape[:2]))  # the text needs some space
        return visualizer.visualize_cls(image, sample, draw_gt=False, resize=side)

    def predictor(self, model: nn.Module, cfg: Config) -> Callable[[torch.Tensor], Any]:
        """Return the scores of a classifier: a softmax, or a sigmoid for several labels."""
        from mmpretrain.models import ClsHead, MultiLabelClsHead

        head = getattr(model, "head", None)
        if isinstance(head, MultiLabelClsHead):
            return lambda image: model(image, mode="tensor").sigmoid()
        if isinstance(head, ClsHead):
            return lambda image: model(image, mode="tensor").softmax(dim=1)
        return super().predictor(model, cfg)

    def counts_classes(self, model: dict) -> bool:
        """Only for image classifiers. Heads of other models have other outputs."""
        return type_name(model.get("type")) in ("ImageClassifier", "TokenLabelClassifier")

    def default_prefix(self, dataset: dict) -> dict:
        """For ImageNet, the folder of the split."""
        of_imagenet = type_name(dataset.get("type")) == "ImageNet"
        return {"img_path": dataset.get("split", "")} if of_imagenet else {}

    def layout_of(self, dataset: dict) -> tuple[str, str] | None:
        """The layout of ImageNet, which has its own data set class."""
        return _LAYOUT if type_name(dataset.get("type")) == "ImageNet" else None

    def check_dataset(
        self, cfg: Config, dataset: DataSet, classes: tuple[str, ...] | None, findings: Findings
    ) -> list[str] | None:
        """Check class folders, annotation files and the number of classes."""
        from mmpretrain.datasets import BaseDataset, CustomDataset, MultiLabelDataset

        from mmlocal.cli.data.classification import check_classification
        from mmlocal.cli.data.heads import compare_heads, heads_of

        heads = heads_of(cfg)
        found: tuple[str, ...] | int | None = classes
        if dataset.takes_from(CustomDataset) or dataset.kind in (BaseDataset, MultiLabelDataset):
            found = check_classification(dataset, findings)
        if not found:
            return None
        number = found if isinstance(found, int) else len(found)
        if not isinstance(found, int) or any(head.num_classes < number for head in heads):
            # Without names, the classes are counted by the labels, and some may not occur.
            compare_heads(heads, number, f"{dataset.key} has", dataset.phase == "train", findings)
        _check_topk(cfg, dataset.phase, findings)
        return None if isinstance(found, int) else list(found)


def _check_topk(cfg: Config, phase: str, findings: Findings) -> None:
    """Check that accuracy does not count more guesses than the head has outputs."""
    from mmlocal.cli.data.heads import heads_of

    for where, metric in metrics_of(cfg, phase).items():
        if type_name(metric.get("type")) != "Accuracy":
            continue
        topk = metric.get("topk", 1)
        topk = list(topk) if isinstance(topk, (list, tuple)) else [topk]
        for head in heads_of(cfg):
            if max(topk) > head.num_classes:
                key = f"{where}.topk"
                findings.error(f"{key} is {tuple(topk)}, {head.setting} is {head.num_classes}")
                possible = [k for k in topk if k <= head.num_classes] or [1]
                findings.set(key, f"[{','.join(map(str, possible))}]")
