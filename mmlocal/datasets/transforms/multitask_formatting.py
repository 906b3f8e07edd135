"""Pack an image and the label maps of all its tasks for MMSegmentation's models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.structures import InstanceData, PixelData

from mmlocal.registry import TRANSFORMS
from mmlocal.tasks import TASKS

_META_KEYS = (
    *("img_path", "img_id", "sample_id", "tasks", "ori_shape", "img_shape", "pad_shape"),
    *("padding_size", "scale_factor", "flip", "flip_direction"),
)


@TRANSFORMS.register_module()
class PackMultiTaskInputs(BaseTransform):
    """Make the ``inputs`` and the ``data_samples`` of mmseg's models.

    The data sample is a ``SegDataSample``. It has the label map of each task of the data set as a
    ``PixelData`` in the ``gt_field`` of the task: labels ``(1, H, W)`` int64, depth ``(1, H, W)``
    float32, and normals ``(3, H, W)`` float32. If there are boxes of objects, ``gt_instances`` has
    ``bboxes`` and ``labels``.

    Args:
        meta_keys: keys of ``results`` to copy into the sample's metainfo, if they are there.
    """

    def __init__(self, meta_keys: Sequence[str] = _META_KEYS) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict) -> dict:
        """Return ``inputs``, a tensor ``(3, H, W)``, and ``data_samples``."""
        # Other transforms work without mmseg.
        from mmseg.structures import SegDataSample

        image = results["img"]
        image = image[..., None] if image.ndim == 2 else image
        sample = SegDataSample()
        for name in results.get("tasks", TASKS):
            task = TASKS[name]
            if task.gt_key not in results:
                continue
            labels = results[task.gt_key]
            labels = labels.transpose(2, 0, 1) if labels.ndim == 3 else labels[None]
            labels = labels.astype(np.float32 if task.continuous else np.int64)
            data = torch.from_numpy(np.ascontiguousarray(labels))
            sample.set_data({task.gt_field: PixelData(data=data)})
        if "gt_bboxes" in results:
            boxes = torch.from_numpy(np.ascontiguousarray(results["gt_bboxes"], dtype=np.float32))
            classes = torch.from_numpy(np.asarray(results["gt_bboxes_labels"], dtype=np.int64))
            instances = InstanceData(bboxes=boxes.reshape(-1, 4), labels=classes)
            sample.set_data({"gt_instances": instances})
        sample.set_metainfo({key: results[key] for key in self.meta_keys if key in results})
        inputs = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        return {"inputs": inputs, "data_samples": sample}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(meta_keys={self.meta_keys})"
