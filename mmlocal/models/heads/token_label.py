"""The head of token labelling: a class token and all other tokens are classified.

Source:
    VOLO: Vision Outlooker for Visual Recognition, Yuan et al. 2021,
    https://arxiv.org/abs/2106.13112. All Tokens Matter: Token Labeling for Training Better Vision
    Transformers, Jiang et al. 2021, https://arxiv.org/abs/2104.10858.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from mmpretrain.models.losses import CrossEntropyLoss
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmlocal.layers import exchange_box
from mmlocal.layers.checks import check_flag, check_int, check_number, check_rate
from mmlocal.models.heads.token_targets import (
    correct_by_truth,
    pool_label_maps,
    smooth_one_hot,
)
from mmlocal.registry import MODELS

# Weight of the best token of each class in a prediction.
AUX_SHARE = 0.5


@MODELS.register_module()
class TokenLabelHead(ClsHead):
    """Classify the class token and each token of the map.

    A prediction is ``fc(class token) + 0.5 * max over tokens of aux_fc(token)``. The loss is
    ``cls_weight * CE(fc(class token), t) + dense_weight * CE(aux_fc(tokens), t_tokens)``, where CE
    is the mean cross entropy with soft targets. The targets ``t`` and ``t_tokens`` are:

    * with label maps of :class:`mmlocal.LoadTokenLabels`: the crop of the map, pooled to one value
      and to one value per token;
    * without label maps: the smoothed label of the image, for each token the same.

    Args:
        num_classes: number of classes.
        in_channels: channels of the tokens.
        cls_weight: weight of the class token in the loss.
        dense_weight: weight of the other tokens in the loss.
        label_smooth_val: share of the label smoothing, in [0, 1).
        use_ground_truth: whether to mix the label of the image into the target of the class token.
            The target of a label map keeps 0.5 if its best class is the label, and 0.9 elsewhere.
            The official fine-tuning does so.
        swap_axes: whether to exchange x and y when a label map is cropped. The official code does
            so, by mistake, and its published results were trained in this way. The default crops
            the right place.
        init_cfg: MMEngine's config of the initialisation.

    Raises:
        ValueError: a count is below 1, a rate is out of range, or no weight is positive.
        TypeError: an argument has another type.

    Note:
        With label maps, no batch augmentation may mix the images of a batch, because it would not
        mix their maps. :class:`mmlocal.TokenLabelClassifier` mixes tokens in its place.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        cls_weight: float = 1.0,
        dense_weight: float = 0.5,
        label_smooth_val: float = 0.1,
        use_ground_truth: bool = False,
        swap_axes: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        init_cfg = init_cfg or dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0)
        super().__init__(loss=CrossEntropyLoss(use_soft=True), init_cfg=init_cfg)
        check_int(num_classes=num_classes, in_channels=in_channels)
        check_number(cls_weight=cls_weight, dense_weight=dense_weight)
        check_rate(below_one=True, label_smooth_val=label_smooth_val)
        check_flag(use_ground_truth=use_ground_truth, swap_axes=swap_axes)
        if min(cls_weight, dense_weight) < 0 or cls_weight == dense_weight == 0:
            raise ValueError(
                "cls_weight and dense_weight must not be negative, nor both be 0, got "
                f"{cls_weight} and {dense_weight}"
            )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.cls_weight = cls_weight
        self.dense_weight = dense_weight
        self.label_smooth_val = label_smooth_val
        self.use_ground_truth = use_ground_truth
        self.swap_axes = swap_axes
        self.fc = nn.Linear(in_channels, num_classes)
        self.aux_fc = nn.Linear(in_channels, num_classes)

    def pre_logits(self, feats: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Split the last output of a backbone.

        Args:
            feats: a sequence that ends with the pair of the map ``(B, in_channels, H, W)`` and the
                class token ``(B, in_channels)``.

        Returns:
            The tokens ``(B, H, W, in_channels)`` and the class token.

        Raises:
            ValueError: there is no class token.
        """
        last = feats[-1]
        if isinstance(last, Tensor) or len(last) != 2:
            raise ValueError(
                "feats must end with a pair of a map and a class token; build the backbone with "
                "with_cls_token=True"
            )
        tokens, cls_token = last
        return tokens.permute(0, 2, 3, 1), cls_token

    def scores(self, feats: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Compute the logits of the class token and of the other tokens.

        Args:
            feats: output of the backbone, as :meth:`pre_logits` describes it.

        Returns:
            ``(B, num_classes)`` and ``(B, H, W, num_classes)``.
        """
        tokens, cls_token = self.pre_logits(feats)
        return self.fc(cls_token), self.aux_fc(tokens)

    def forward(self, feats: Sequence[Any]) -> Tensor:
        """Compute the logits of a prediction.

        Args:
            feats: output of the backbone, as :meth:`pre_logits` describes it.

        Returns:
            ``(B, num_classes)``.
        """
        cls_score, aux_score = self.scores(feats)
        return cls_score + AUX_SHARE * aux_score.flatten(1, 2).amax(1)

    def loss(
        self,
        feats: Sequence[Any],
        data_samples: Sequence[DataSample],
        mix_box: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the loss of both kinds of tokens.

        Args:
            feats: output of the backbone, as :meth:`pre_logits` describes it.
            data_samples: a sample for each image, with ``gt_label`` or ``gt_score``. Either all or
                none of them have ``token_labels`` and ``token_box`` of
                :class:`mmlocal.LoadTokenLabels`.
            mix_box: rectangle ``(top, left, bottom, right)`` of tokens that each image got from the
                reversed batch; ``None`` if images were not mixed.

        Returns:
            ``loss_cls`` and ``loss_aux``, each with its weight.

        Raises:
            ValueError: only some samples have a label map, maps have different shapes, or a map
                names a class that the head does not have.
        """
        cls_score, aux_score = self.scores(feats)
        height, width = aux_score.shape[1:3]
        target, token_target = self._targets(data_samples, (height, width), cls_score.device)
        if mix_box is not None:
            aux_score = exchange_box(aux_score, mix_box)
            top, left, bottom, right = mix_box
            share = 1 - (bottom - top) * (right - left) / (height * width)
            target = share * target + (1 - share) * target.flip(0)
        return dict(
            loss_cls=self.cls_weight * self.loss_module(cls_score, target),
            loss_aux=self.dense_weight * self.loss_module(aux_score.flatten(1, 2), token_target),
        )

    def _targets(
        self, samples: Sequence[DataSample], size: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Make the targets ``(B, num_classes)`` of images, ``(B, N or 1, num_classes)`` of tokens.

        The second one has a single token where all tokens of an image have the same target.
        """
        if "gt_score" in samples[0]:
            scores = torch.stack([sample.gt_score for sample in samples]).to(device)
        else:
            labels = torch.cat([sample.gt_label for sample in samples]).to(device)
            scores = F.one_hot(labels, self.num_classes)
        truth = smooth_one_hot(scores.float(), self.label_smooth_val)
        if not any("token_labels" in sample for sample in samples):
            return truth, truth[:, None]
        label_maps, boxes = (tensor.to(device) for tensor in self._label_maps(samples))

        def pool(size: tuple[int, int]) -> Tensor:
            pooled = pool_label_maps(
                *(label_maps, boxes, self.num_classes, size),
                *(self.label_smooth_val, self.swap_axes),
            )
            return pooled.flatten(2).transpose(1, 2)

        target = pool((1, 1)).squeeze(1)
        if self.use_ground_truth:
            target = correct_by_truth(target, truth)
        return target, pool(size)

    def _label_maps(self, samples: Sequence[DataSample]) -> tuple[Tensor, Tensor]:
        """Stack the label maps and boxes of all samples, and check the maps."""
        count = sum("token_labels" in sample for sample in samples)
        if count < len(samples):
            raise ValueError(
                f"all samples of a batch or none must have token_labels, got {count} of "
                f"{len(samples)}"
            )
        shapes = {tuple(sample.token_labels.shape) for sample in samples}
        if len(shapes) > 1:
            raise ValueError(f"token_labels of a batch must have one shape, got {sorted(shapes)}")
        label_maps = torch.stack([sample.token_labels for sample in samples])
        first, last = label_maps[:, 1].aminmax()
        if not 0 <= first <= last < self.num_classes:
            raise ValueError(
                f"token_labels must name classes from 0 to num_classes - 1 = "
                f"{self.num_classes - 1}, got {first:g} to {last:g}; set num_classes of the head "
                "to the number of classes of the label maps"
            )
        return label_maps, torch.stack([sample.token_box for sample in samples])
