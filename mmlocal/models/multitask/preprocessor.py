"""Batches of images and of the label maps of all tasks."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from mmseg.models import SegDataPreProcessor

from mmlocal.registry import MODELS
from mmlocal.tasks import IGNORE, TASKS


@MODELS.register_module()
class MultiTaskDataPreProcessor(SegDataPreProcessor):
    """MMSegmentation's ``SegDataPreProcessor``, which pads the label maps of all tasks.

    In training, images of different sizes are padded on the right and at the bottom. Their label
    maps get 255 there, which no loss counts. ``SegDataPreProcessor`` does this for three kinds of
    label maps only.

    Args:
        **kwargs: arguments of ``SegDataPreProcessor``. ``size`` and ``size_divisor`` may both be
            left out: images are then padded to the largest of the batch.

    Raises:
        ValueError: ``seg_pad_val`` is not 255.
    """

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("size") is None and kwargs.get("size_divisor") is None:
            kwargs["size_divisor"] = 1
        super().__init__(**kwargs)
        if self.seg_pad_val != IGNORE:
            raise ValueError(
                f"seg_pad_val must be {IGNORE}, the value that no loss counts, got "
                f"{self.seg_pad_val}"
            )

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """Normalise, pad and stack a batch.

        Args:
            data: ``inputs``, images ``(3, H, W)``, and ``data_samples`` with label maps.
            training: whether to pad images of different sizes, with their label maps.

        Returns:
            ``inputs`` ``(B, 3, H, W)``, and ``data_samples``.
        """
        data = super().forward(data, training)
        if training:
            size = tuple(data["inputs"].shape[2:])
            for sample in data["data_samples"]:
                own = tuple(sample.metainfo["img_shape"][:2])
                padding = (0, size[1] - own[1], 0, size[0] - own[0])
                for task in TASKS.values():
                    labels = sample.get(task.gt_field)
                    # MMSegmentation has padded some. The loss refuses labels of another size.
                    if labels is not None and labels.shape == own != size:
                        padded = F.pad(labels.data, padding, value=IGNORE)
                        del labels.data
                        labels.data = padded
        return data
