"""An auto-encoder of equal layers, to compare layers that halve or double a map.

Source:
    Learned Queries for Efficient Local Attention, Arar et al. 2022, appendix G. No code was
    published.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from mmlocal.layers import QnA, UpsampleQnA
from mmlocal.layers.checks import check_choice, check_int
from mmlocal.registry import MODELS

NORM_EPS = 1e-6


class _ChannelsLast(nn.Sequential):
    """Layers on ``(B, H, W, C)``, applied to a map ``(B, C, H, W)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _norm_relu(dims: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(dims, affine=True), nn.ReLU()]


# The convolutions have no bias: an instance norm would remove it.
def _conv_stride(dims: int, num_heads: int) -> nn.Module:
    """Make the paper's ConvS2-IN."""
    conv = nn.Conv2d(dims, dims, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, *_norm_relu(dims))


def _conv_max(dims: int, num_heads: int) -> nn.Module:
    """Make the paper's Conv-IN-Max."""
    conv = nn.Conv2d(dims, dims, 3, padding=1, bias=False)
    return nn.Sequential(conv, *_norm_relu(dims), nn.MaxPool2d(2))


def _qna(dims: int, num_heads: int) -> nn.Module:
    """Make the paper's LN-QnA. Its single query needs no weight of its attention map."""
    qna = QnA(dims, num_heads, num_queries=1, stride=2, attn_scale="none")
    return _ChannelsLast(nn.LayerNorm(dims, eps=NORM_EPS), qna)


def _bilinear_conv(dims: int, num_heads: int) -> nn.Module:
    """Make the paper's Bilinear-Conv-IN."""
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    conv = nn.Conv2d(dims, dims, 3, padding=1, bias=False)
    return nn.Sequential(up, conv, *_norm_relu(dims))


def _conv_transposed(dims: int, num_heads: int) -> nn.Module:
    """Make the paper's ConvTransposed-IN."""
    conv = nn.ConvTranspose2d(dims, dims, 3, stride=2, padding=1, output_padding=1, bias=False)
    return nn.Sequential(conv, *_norm_relu(dims))


def _uqna(dims: int, num_heads: int) -> nn.Module:
    """Make the paper's LN-UQnA."""
    return _ChannelsLast(nn.LayerNorm(dims, eps=NORM_EPS), UpsampleQnA(dims, num_heads))


ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv_stride": _conv_stride,
    "conv_max": _conv_max,
    "qna": _qna,
}
DECODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "bilinear_conv": _bilinear_conv,
    "conv_transposed": _conv_transposed,
    "uqna": _uqna,
}


@MODELS.register_module()
class AutoEncoder(BaseModel):
    """Halve an image ``num_layers`` times, double it as often, and compare the two by L1.

    All windows are 3x3 and no layer has a skip connection. The paper names the layers and the loss.
    The rest is our choice: one width for all layers, 1x1 convolutions from the image to that width
    and back, ReLU after each instance norm, no activation after QnA, and 8 channels per head, which
    the paper finds best for QnA elsewhere.

    Args:
        encoder: ``'conv_stride'``: convolution of stride 2, instance norm. ``'conv_max'``:
            convolution, instance norm, max-pooling. ``'qna'``: LayerNorm,
            :class:`~mmlocal.layers.QnA` with one query and stride 2.
        decoder: ``'bilinear_conv'``: bilinear interpolation, convolution, instance norm.
            ``'conv_transposed'``: transposed convolution, instance norm. ``'uqna'``: LayerNorm,
            :class:`~mmlocal.layers.UpsampleQnA`.
        in_channels: channels of the image.
        embed_dims: channels of all layers.
        num_heads: heads of the QnA layers; must divide ``embed_dims``.
        num_layers: number of layers of the encoder, and of the decoder.
        data_preprocessor: MMEngine's preprocessor or its config. It must bring images to [0, 1].
        init_cfg: MMEngine's config of the initialisation; ``None`` for PyTorch's default in
            convolutions and the official initialisation in QnA.

    Raises:
        ValueError: ``encoder`` or ``decoder`` is unknown, a count is below 1, or ``num_heads`` does
            not divide ``embed_dims``.
        TypeError: a count is not an integer.

    Note:
        An instance norm removes the mean of a map. So the convolutional kinds learn the brightness
        of an image only as far as borders and rectified values show it.

        QnA attends almost evenly at first. If the smallest map has 2x2 tokens, each window of the
        first ``'uqna'`` layer sees the whole map, so all outputs of the layer are nearly equal.
        With a ``'qna'`` encoder, training then stayed at images of one colour. Keep the smallest
        map well above 3x3.
    """

    def __init__(
        self,
        encoder: str = "qna",
        decoder: str = "uqna",
        in_channels: int = 3,
        embed_dims: int = 64,
        num_heads: int = 8,
        num_layers: int = 5,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        check_choice(tuple(ENCODERS), encoder=encoder)
        check_choice(tuple(DECODERS), decoder=decoder)
        check_int(in_channels=in_channels, embed_dims=embed_dims, num_layers=num_layers)
        self.in_channels = in_channels
        self.size_divisor = 2**num_layers
        down, up = ENCODERS[encoder], DECODERS[decoder]
        self.stem = nn.Conv2d(in_channels, embed_dims, 1)
        self.encoder = nn.Sequential(*(down(embed_dims, num_heads) for _ in range(num_layers)))
        self.decoder = nn.Sequential(*(up(embed_dims, num_heads) for _ in range(num_layers)))
        self.head = nn.Conv2d(embed_dims, in_channels, 1)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = "tensor",
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """Reconstruct images.

        Args:
            inputs: ``(B, in_channels, H, W)`` in [0, 1]; ``H`` and ``W`` are multiples of
                ``2**num_layers``.
            data_samples: one sample per image, to which ``"predict"`` adds its results; ``None``
                for new samples.
            mode: ``"tensor"``, ``"loss"`` or ``"predict"``, as MMEngine's models have it.

        Returns:
            ``"tensor"``: ``(B, in_channels, H, W)``, not clipped. ``"loss"``: ``loss``, the mean
            absolute error. ``"predict"``: a sample per image, with ``gt_image`` and ``pred_image``,
            both ``(in_channels, H, W)`` float32 in [0, 1].

        Raises:
            ValueError: ``inputs`` has other channels or sizes, ``mode`` is unknown, or an instance
                norm sees a map of one pixel (PyTorch's error).
        """
        if mode not in ("tensor", "loss", "predict"):
            raise ValueError(f"mode must be tensor, loss or predict, got {mode!r}")
        self._check_input(inputs)
        x = self.head(self.decoder(self.encoder(self.stem(inputs))))
        if mode == "tensor":
            return x
        x = x.float()  # it has half precision under AMP
        if mode == "loss":
            return dict(loss=F.l1_loss(x, inputs))
        samples = data_samples or [BaseDataElement() for _ in inputs]
        for sample, image, pred in zip(samples, inputs, x.clamp(0, 1), strict=True):
            sample.gt_image, sample.pred_image = image, pred
        return list(samples)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"inputs must be (B, in_channels={self.in_channels}, H, W), got {tuple(x.shape)}"
            )
        if any(size % self.size_divisor or not size for size in x.shape[2:]):
            raise ValueError(
                f"inputs must have H and W that are multiples of {self.size_divisor}, got "
                f"{x.shape[2]}x{x.shape[3]}; resize or crop the images in the pipeline"
            )
