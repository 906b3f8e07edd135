"""The input of models."""

from __future__ import annotations

from torch import Tensor

from mmlocal.layers.checks import check_tensor


def check_image(x: Tensor, in_channels: int, patch_size: int) -> None:
    """Check the input of a model.

    Args:
        x: the input to check. It must be ``(B, in_channels, H, W)``, floating point.
        in_channels: channels of the image.
        patch_size: smallest height and width, in pixels.

    Raises:
        ValueError: ``x`` is not 4-D, has other channels or is smaller than one patch.
        TypeError: ``x`` is not a tensor, or not floating point.
    """
    check_tensor(x)
    if x.dim() != 4 or x.shape[1] != in_channels:
        raise ValueError(
            f"x must be an image batch (B, in_channels={in_channels}, H, W), got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point, got {x.dtype}")
    height, width = x.shape[2:]
    if height < patch_size or width < patch_size:
        raise ValueError(
            f"x must be at least one patch of {patch_size}x{patch_size} pixels, "
            f"got {height}x{width}"
        )
