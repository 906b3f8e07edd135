"""A classifier that mixes the tokens of images, for token labelling."""

from __future__ import annotations

import math

import torch
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from mmlocal.layers.checks import check_flag
from mmlocal.registry import MODELS

Box = tuple[int, int, int, int]


def box_of_share(size: tuple[int, int], share: float, center: tuple[int, int]) -> Box:
    """Compute the rectangle that is mixed, as the official code does.

    Its sides are ``int(side * sqrt(1 - share))`` of the map, and one less if this is odd. The map
    cuts it off.

    Args:
        size: height and width of the map, in tokens.
        share: share of the map that is not mixed, in [0, 1].
        center: row and column of the centre.

    Returns:
        Rows and columns ``(top, left, bottom, right)``. The last row and column are not part of the
        rectangle, which may be empty.

    Source:
        Official code of VOLO, Yuan et al. 2021, https://arxiv.org/abs/2106.13112.
    """
    cut = math.sqrt(1 - share)
    halves = [int(side * cut) // 2 for side in size]
    top, left = (max(c - half, 0) for c, half in zip(center, halves, strict=True))
    bottom, right = (
        min(c + half, side) for c, half, side in zip(center, halves, size, strict=True)
    )
    return top, left, bottom, right


@MODELS.register_module()
class TokenLabelClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` for token labelling, with MixToken.

    In training, a rectangle of tokens behind the stem is exchanged between each image and its
    partner in the reversed batch. The head exchanges it back in the logits of the tokens, and mixes
    the targets of the class tokens by its area. The share of the map outside the rectangle is drawn
    from Beta(1, 1), which is even, and its centre evenly.

    Args:
        backbone: config of a backbone such as :class:`mmlocal.VOLO`, with
            ``with_cls_token=True``. It has the method ``grid_size(height, width)``, and its
            ``forward`` takes ``mix_box``.
        head: config of a :class:`mmlocal.TokenLabelHead`.
        mix_token: whether to mix tokens in training.
        pretrained: checkpoint of the whole model, as mmpretrain takes it.
        train_cfg: batch augmentation, as mmpretrain takes it. It should not mix images.
        data_preprocessor: config of the preprocessor, as mmpretrain takes it.
        init_cfg: MMEngine's config of the initialisation.

    Raises:
        TypeError: ``mix_token`` is not a bool, or ``mix_token`` is set and the backbone cannot mix.

    Source:
        MixToken: All Tokens Matter, Jiang et al. 2021, https://arxiv.org/abs/2104.10858.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module,
        mix_token: bool = True,
        pretrained: str | None = None,
        train_cfg: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            head=head,
            pretrained=pretrained,
            train_cfg=train_cfg,
            data_preprocessor=data_preprocessor,
            init_cfg=init_cfg,
        )
        check_flag(mix_token=mix_token)
        if mix_token and not hasattr(self.backbone, "grid_size"):
            raise TypeError(
                "mix_token needs a backbone with grid_size and mix_box, such as mmlocal.VOLO, got "
                f"{type(self.backbone).__name__}; set mix_token=False"
            )
        self.mix_token = mix_token

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the loss, with mixed tokens in training mode.

        Args:
            inputs: ``(B, C, H, W)`` normalized images.
            data_samples: a sample for each image, as the head takes it.

        Returns:
            Losses by name.
        """
        if not (self.mix_token and self.training):
            return self.head.loss(self.extract_feat(inputs), data_samples)
        box = self.draw_box(*inputs.shape[2:])
        return self.head.loss(self.backbone(inputs, mix_box=box), data_samples, mix_box=box)

    def draw_box(self, height: int, width: int) -> Box:
        """Draw a rectangle to mix, by PyTorch's generator.

        Args:
            height: height of the images in pixels.
            width: width of the images in pixels.

        Returns:
            ``(top, left, bottom, right)`` in tokens, as :func:`box_of_share` returns it.
        """
        size = self.backbone.grid_size(height, width)
        center = [int(torch.randint(side, ())) for side in size]
        return box_of_share(size, float(torch.rand(())), (center[0], center[1]))
