"""The model of several dense tasks: a backbone, or one per task, and a head of all tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch.nn.functional as F
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.registry import MODELS as MMSEG_MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from mmlocal.layers.checks import check_flag
from mmlocal.models.multitask.detection import restore_boxes
from mmlocal.models.multitask.outputs import decode
from mmlocal.registry import MODELS


@MODELS.register_module()
class MultiTaskSegmentor(BaseSegmentor):
    """Predict several dense tasks of an image with one network.

    A data sample has the labels of a task as ``gt_*`` and gets its prediction as ``pred_*``:

    ============  =================  ==========================================
    task          field              prediction
    ============  =================  ==========================================
    semseg        ``sem_seg``        labels ``(1, H, W)``, int64
    human_parts   ``parts_map``      labels ``(1, H, W)``, int64
    sal           ``saliency_map``   probabilities ``(1, H, W)``
    depth         ``depth_map``      depths of at least 0, ``(1, H, W)``
    normals       ``normal_map``     unit vectors ``(3, H, W)``
    edge          ``edge_map``       probabilities ``(1, H, W)``
    ============  =================  ==========================================

    With ``semseg``, a sample also gets ``seg_logits``, as from other segmentors of MMSegmentation.
    With :class:`mmlocal.ITSADetectionHead`, it gets ``pred_instances``, as from the detectors of
    MMDetection.

    Args:
        backbone: config of the backbone, of MMSegmentation, mmpretrain (``type='mmpretrain.*'``) or
            mmlocal.
        decode_head: config of a head such as :class:`mmlocal.ITSAHead`.
        neck: config of a neck between them; ``None`` for none.
        data_preprocessor: config of the data preprocessor, such as
            :class:`mmlocal.MultiTaskDataPreProcessor`.
        share_backbone: whether all tasks share one backbone, and one neck. Otherwise each task has
            its own, and ``backbone`` is a dict of modules by task. With ``MultiTaskHead``, this
            trains the single-task baselines of all tasks at once.
        train_cfg: config of the training, for the head.
        test_cfg: config of the prediction; only ``mode='whole'`` is known.
        pretrained: ``None``, which mmseg's tools pass.
        init_cfg: MMEngine's config of the initialisation.

    Raises:
        ValueError: ``test_cfg`` asks for sliding windows, or ``pretrained`` is set; or see the
            head.
        TypeError: ``share_backbone`` is not a bool.
    """

    backbone: Any  # a module, or a ModuleDict by task
    neck: Any

    def __init__(
        self,
        backbone: dict,
        decode_head: dict,
        neck: dict | None = None,
        data_preprocessor: dict | None = None,
        share_backbone: bool = True,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        pretrained: None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        check_flag(share_backbone=share_backbone)
        if pretrained is not None:
            raise ValueError(
                "pretrained must be None; use backbone.init_cfg=dict(type='Pretrained', "
                f"checkpoint={pretrained!r}), with prefix='backbone.' for a whole model"
            )
        mode = (test_cfg or {}).get("mode", "whole")
        if mode != "whole":
            raise ValueError(
                f"test_cfg.mode must be 'whole', because attention among tasks sees the whole "
                f"image, got {mode!r}"
            )
        self.share_backbone = share_backbone
        self.train_cfg = train_cfg
        self.test_cfg = test_cfg
        self.decode_head = MMSEG_MODELS.build(decode_head | dict(share_encoder=share_backbone))
        self.tasks = self.decode_head.tasks
        self.align_corners = self.decode_head.align_corners
        # mmseg's inference and its test-time augmentation read them.
        self.num_classes = self.out_channels = self.decode_head.num_classes
        self.backbone = self._build(backbone)
        if neck is not None:
            self.neck = self._build(neck)

    def _build(self, cfg: dict) -> nn.Module:
        """Build one module, or one per task."""
        if self.share_backbone:
            return MMSEG_MODELS.build(cfg)
        # Some backbones change parts of their config.
        return nn.ModuleDict({t.name: MMSEG_MODELS.build(deepcopy(cfg)) for t in self.tasks})

    def extract_feat(self, inputs: Tensor) -> Any:
        """Compute the maps of the backbone, or of each backbone by task.

        Args:
            inputs: images ``(B, 3, H, W)``.

        Returns:
            A tuple of maps ``(B, C_i, H_i, W_i)``; without ``share_backbone``, such a tuple for
            each task, by name.
        """
        if self.share_backbone:
            feats = self.backbone(inputs)
            return self.neck(feats) if self.with_neck else feats
        feats = {name: backbone(inputs) for name, backbone in self.backbone.items()}
        if self.with_neck:
            feats = {name: self.neck[name](maps) for name, maps in feats.items()}
        return feats

    def encode_decode(
        self, inputs: Tensor, batch_data_samples: Sequence[Any] | None = None
    ) -> dict[str, Any]:
        """Compute the outputs of all tasks in the size of the images.

        Args:
            inputs: images ``(B, 3, H, W)``.
            batch_data_samples: unused.

        Returns:
            Logits ``(B, C_task, H, W)`` by task. Objects of a detection are under ``detection``.
        """
        return self.decode_head.predict(self.extract_feat(inputs), inputs.shape[2:])

    def _forward(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> dict[str, Any]:
        return self.encode_decode(inputs, data_samples)

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """Compute the loss of each task.

        Args:
            inputs: images ``(B, 3, H, W)``.
            data_samples: a sample for each image, with the labels of each task.

        Returns:
            ``loss_<task>`` by task, with its weight. MMEngine adds them up.

        Raises:
            ValueError: the labels of a task are missing, or have another size than the images.
        """
        feats = self.extract_feat(inputs)
        return self.decode_head.loss(feats, data_samples, self.train_cfg, size=inputs.shape[2:])

    def predict(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> list[SegDataSample]:
        """Predict all tasks.

        Args:
            inputs: images ``(B, 3, H, W)``.
            data_samples: a sample for each image. ``padding_size`` and ``img_padding_size`` are
                ``(left, right, top, bottom)`` in pixels, and are cut off. ``ori_shape`` is the size
                of the predictions.

        Returns:
            The same samples, or new ones, with a prediction for each task. Labels stay.
        """
        logits = self.encode_decode(inputs)
        detected = logits.get("detection")
        if data_samples is None:
            data_samples = [SegDataSample() for _ in inputs]
        for index, sample in enumerate(data_samples):
            for task in self.tasks:
                own = restore(
                    logits[task.name][index].float(), sample.metainfo, task.name, self.align_corners
                )
                setattr(sample, task.pred_field, PixelData(data=decode(task, own)))
                if task.name == "semseg":
                    sample.seg_logits = PixelData(data=own)
            if detected is not None:
                sample.pred_instances = restore_boxes(
                    detected[index], sample.metainfo, inputs.shape[2:]
                )
        return list(data_samples)


def restore(
    logits: Tensor, meta: Mapping[str, Any], task: str, align_corners: bool = False
) -> Tensor:
    """Bring the outputs for an image back to the image before its pipeline.

    Args:
        logits: ``(C, H, W)`` in the size of the input of the network.
        meta: meta information of the data sample.
        task: name of the task. The x of normals changes its sign with a horizontal flip, and the y
            with a vertical one.
        align_corners: argument of :func:`torch.nn.functional.interpolate`.

    Returns:
        ``(C, *ori_shape)``.
    """
    # The preprocessor pads what the pipeline has padded.
    for key in ("img_padding_size", "padding_size"):
        left, right, top, bottom = meta.get(key, (0, 0, 0, 0))
        height, width = logits.shape[1:]
        logits = logits[:, top : height - bottom, left : width - right]
    if meta.get("flip"):
        horizontal = meta.get("flip_direction", "horizontal") == "horizontal"
        logits = logits.flip(2 if horizontal else 1)
        if task == "normals":
            component = 0 if horizontal else 1
            logits[component] = -logits[component]
    size = tuple(meta.get("ori_shape", logits.shape[1:]))[:2]
    if logits.shape[1:] != size:
        logits = F.interpolate(
            logits[None], size=size, mode="bilinear", align_corners=align_corners
        )[0]
    return logits
