"""Each backbone as an ONNX graph for all batches and sizes of images, with PyTorch's numbers."""

import pytest
import torch
from torch import nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mmlocal.export.onnx_file import ExportError, export_onnx
from mmlocal.layers import MIXERS
from mmlocal.models.backbones import ELSAVOLO, VOLO, DWNet, ELSASwin, GhostDeiT, LocalSwin, QnAViT

TWO = dict(embed_dims=8, depths=(1, 2), num_heads=(1, 2))
VOLO_ARCH = dict(embed_dims=12, depths=(1, 1), num_heads=(3, 4), stem_dims=8)
QNA_ARCH = dict(
    embed_dims=8, attn_depths=(0, 1), qna_depths=(1, 1), attn_heads=(1, 2), qna_heads=(2, 4)
)


def elsa_swin(fit_window: bool = False) -> nn.Module:
    return ELSASwin(
        TWO | dict(group_width=4), kernel_size=3, window_size=3, out_indices=(0, 1),
        fit_window=fit_window,
    )  # fmt: skip


def qna_vit(**kwargs) -> nn.Module:
    arch = QNA_ARCH | kwargs.pop("arch", {})
    return QnAViT(arch, window_sizes=(3, 3), out_indices=(0, 1), **kwargs)


def volo(kind=VOLO) -> nn.Module:
    settings = dict(pretrain_img_size=32, out_indices=(0, 1), with_cls_token=True)
    return kind(VOLO_ARCH, **settings, **(dict(kernel_size=3) if kind is ELSAVOLO else {}))


def dwnet(spatial: str) -> nn.Module:
    arch = dict(embed_dims=8, depths=(1, 1))
    return DWNet(arch, spatial, num_heads=2, kernel_size=3, out_indices=(0, 1), out_norm="BN")


def local_swin(names: list[str]) -> nn.Module:
    """Each mixer in a block of its own."""
    arch = dict(embed_dims=12, depths=(len(names), 1), num_heads=(3, 3))
    small = dict(ELSA=dict(kernel_size=3))
    mixers = [dict(type=name) | small.get(name, {}) for name in names]
    return LocalSwin(arch, mixers=[mixers, dict(type="DepthwiseConv")], out_indices=(0, 1))


BACKBONES = {
    "elsa_swin": elsa_swin,
    "qna_vit": qna_vit,
    "qna_vit 7x7": lambda: qna_vit(arch=dict(kernel_size=7, attn_depths=(0, 0))),
    "volo": volo,
    "elsa_volo": lambda: volo(ELSAVOLO),
    "dwnet": lambda: dwnet("static"),
    "dwnet dynamic": lambda: dwnet("dynamic"),
    "dwnet inhomogeneous": lambda: dwnet("inhomogeneous"),
    "ghost_deit": lambda: GhostDeiT(
        dict(embed_dims=12, num_layers=1, num_heads=3), patch_size=4, pretrain_img_size=16
    ),
}


def images(*shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, 3, height, width) for batch, height, width in shapes]


def export(model: nn.Module, path) -> None:
    image, *others = images((2, 40, 56), (3, 51, 37), (1, 24, 17))
    export_onnx(model.eval(), image, path, others=others)


# The exporter takes its time for each node, and longer where sizes are long expressions.
QUICK = {"elsa_swin", "dwnet dynamic", "ghost_deit"}


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES],
)
def test_backbone(name, tmp_path):
    torch.manual_seed(0)
    export(BACKBONES[name](), tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 1])
def test_mixers(part, tmp_path):
    """All mixers, in two networks."""
    torch.manual_seed(0)
    export(local_swin(sorted(MIXERS)[part::2]), tmp_path / "model.onnx")


def test_windows_that_fit_need_one_size(tmp_path):
    """In the last stage, the map is smaller than a window."""
    model = elsa_swin(fit_window=True).eval()
    image, other = images((1, 3 * 8, 4 * 8), (1, 40, 56))
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"fit_window=True, .* --static"):
        export_onnx(model, image, path, others=[other])
    assert not list(tmp_path.iterdir())
    export_onnx(model, image, path, dynamic=False)
