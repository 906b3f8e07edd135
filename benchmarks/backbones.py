"""The backbones of the benchmark: ours, and their peers from other libraries."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from mmlocal.errors import UsageError
from mmlocal.libraries import LIBRARIES
from mmlocal.models.backbones.base import LocalBackbone
from mmlocal.registry import MODELS

# Builds a backbone for images of a height and width in pixels. Few backbones depend on the size.
Build = Callable[[tuple[int, int]], nn.Module]
# Stochastic depth of timm's models, which have none by default. It costs a product per branch.
_DROP_PATH_RATE = 0.1


def _ours(kind: type[nn.Module], arch: str, size: tuple[int, int]) -> nn.Module:
    return kind(arch=arch)


def _swin(arch: str, size: tuple[int, int]) -> nn.Module:
    from mmpretrain.models import SwinTransformer

    # As in dense prediction: all four maps, and images of any size.
    return SwinTransformer(arch=arch, out_indices=(0, 1, 2, 3), pad_small_map=True)


def _resnet(depth: int, size: tuple[int, int]) -> nn.Module:
    from mmpretrain.models import ResNet

    return ResNet(depth=depth, out_indices=(0, 1, 2, 3))


class _TorchvisionMaps(nn.Module):
    """The four maps of a hierarchical model of torchvision, without its classifier."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import torchvision

        # In turns: stem or downsampling, and blocks.
        self.features = torchvision.models.get_model(name).features

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for index, part in enumerate(self.features):
            x = part(x)
            if index % 2:
                maps.append(x)
        return maps


def _timm_maps(name: str, size: tuple[int, int], **settings: Any) -> nn.Module:
    import timm

    return timm.create_model(name, features_only=True, drop_path_rate=_DROP_PATH_RATE, **settings)


def _timm_swin(size: tuple[int, int]) -> nn.Module:
    return _timm_maps("swin_tiny_patch4_window7_224", size, img_size=size)


class _TimmTokens(nn.Module):
    """All tokens and the class token of a model of timm, as ours returns them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        self.model = timm.create_model(name, num_classes=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_features(x)


def _with_cls_token(name: str, size: tuple[int, int]) -> nn.Module:
    return MODELS.get(name)(arch="d1", with_cls_token=True, out_indices=(3,))


# Backbones of other libraries. The library of a name is its first word, or else mmpretrain.
PEERS: dict[str, Build] = {
    **{f"swin_{arch}": partial(_swin, arch) for arch in ("tiny", "small", "base")},
    **{f"resnet_{depth}": partial(_resnet, depth) for depth in (50, 101)},
    "torchvision_swin_tiny": lambda size: _TorchvisionMaps("swin_t"),
    "torchvision_convnext_tiny": lambda size: _TorchvisionMaps("convnext_tiny"),
    "timm_swin_tiny": _timm_swin,
    "timm_convnext_tiny": partial(_timm_maps, "convnext_tiny"),
    # The same network. Its MLPs are 1x1 convolutions, which some CPUs run faster.
    "timm_convnext_tiny_conv_mlp": partial(_timm_maps, "convnext_tiny", conv_mlp=True),
    "timm_volo_d1": lambda size: _TimmTokens("volo_d1_224"),
}
# Ours as in a classifier, where they do the same work as timm's.
CLASSIFIERS: dict[str, Build] = {
    "volo_d1_cls": partial(_with_cls_token, "mmlocal.VOLO"),
    "elsa_volo_d1_cls": partial(_with_cls_token, "mmlocal.ELSAVOLO"),
}


def list_models() -> dict[str, Build]:
    """Map the names of all backbones to measure to functions that build them.

    Our backbones come from ``mmlocal.registry.MODELS``. Each name joins the file of a class and a
    published size, such as ``elsa_swin_tiny``. VOLO as in a classifier and some backbones of
    mmpretrain, torchvision and timm follow.
    """
    ours = {
        f"{kind.__module__.rpartition('.')[2]}_{arch}": partial(_ours, kind, arch)
        for kind in MODELS.module_dict.values()
        if isinstance(kind, type) and issubclass(kind, LocalBackbone)
        for arch in kind.arch_zoo
    }
    return ours | CLASSIFIERS | PEERS


def build_model(name: str, size: tuple[int, int]) -> nn.Module:
    """Build a backbone with random weights.

    Args:
        name: a name out of :func:`list_models`.
        size: height and width of the images in pixels.

    Raises:
        UsageError: the name is unknown, or its library is missing.
    """
    models = list_models()
    if name not in models:
        raise UsageError(f"must be among {', '.join(models)}, got {name!r}", "models")
    try:
        return models[name](size)
    except ImportError as error:
        library = name.partition("_")[0]
        if library not in ("timm", "torchvision"):
            library = "mmpretrain"
        reason = LIBRARIES["mmpretrain"].why_not() if library == "mmpretrain" else None
        raise UsageError(f"{name} comes from {library}. {reason or error}", "models") from error
