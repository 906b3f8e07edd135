"""Load the label maps of multi-task data sets, and mark the pixels without a label."""

from __future__ import annotations

import numpy as np
from mmcv.transforms import BaseTransform

from mmlocal.datasets.transforms.label_formats import read_label_map
from mmlocal.registry import TRANSFORMS
from mmlocal.tasks import IGNORE, TASKS


@TRANSFORMS.register_module()
class LoadMultiTaskAnnotations(BaseTransform):
    """Load the label maps of an image, each under the ``gt_key`` of its task.

    Labels are ``(H, W)`` uint8, depth is ``(H, W)`` float32, and normals are ``(H, W, 3)`` float32.
    The step comes after ``LoadImageFromFile``. An image without ``labels``, such as the images of
    an inferencer, stays without label maps.
    """

    def transform(self, results: dict) -> dict:
        """Add the label maps.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or has another size than the image.
        """
        shape = tuple(results["ori_shape"][:2])
        for task, file in (results.get("labels") or {}).items():
            labels = read_label_map(shape=shape, **file)
            if labels.shape[:2] != shape:
                raise ValueError(
                    f"{file['path']} has {labels.shape[0]}x{labels.shape[1]} pixels, and its image "
                    f"{results['img_path']} has {shape[0]}x{shape[1]}; label maps must have the "
                    "size of their image"
                )
            results[TASKS[task].gt_key] = labels
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


@TRANSFORMS.register_module()
class MarkIgnored(BaseTransform):
    """Mark the pixels without a label with 255, which losses and metrics ignore.

    These are normals of length 0, depth 0, and all human parts of an image without any part. The
    step comes after all other changes of the label maps. Before it, depth 0 stands for unknown
    depth.
    """

    def transform(self, results: dict) -> dict:
        """Change ``gt_normal_map``, ``gt_depth_map`` and ``gt_parts_map``, if there are any."""
        normals = results.get(TASKS["normals"].gt_key)
        if normals is not None:
            normals[(normals == 0).all(axis=-1)] = IGNORE
        depth = results.get(TASKS["depth"].gt_key)
        if depth is not None:
            depth[depth == 0] = IGNORE
        parts = results.get(TASKS["human_parts"].gt_key)
        if parts is not None and np.isin(parts, (0, IGNORE)).all():
            parts[:] = IGNORE
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
