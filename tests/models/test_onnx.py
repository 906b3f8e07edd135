"""Backbones and mixers as ONNX graphs for all batches and sizes, with PyTorch's numbers.

The exporter takes its time for each node, and longer where sizes are long expressions. So there is
one network for each way in which backbones handle sizes, and mixers get their maps directly.
"""

import inspect

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from mmlocal.export.onnx_file import ExportError, export_onnx
from mmlocal.layers import MIXERS
from mmlocal.models.backbones import VOLO, ELSASwin, QnAViT


def elsa_swin(fit_window: bool = False) -> nn.Module:
    """ELSA, patch merging, and shifted windows."""
    arch = dict(embed_dims=8, depths=(1, 2), num_heads=(1, 2), group_width=4)
    return ELSASwin(
        arch, kernel_size=3, window_size=3, out_indices=(0, 1), fit_window=fit_window
    ).eval()


def qna_vit() -> nn.Module:
    """QnA that makes the map smaller, and global attention with relative positions.

    Blocks of QnA are among the mixers.
    """
    arch = dict(
        embed_dims=8, attn_depths=(0, 1), qna_depths=(0, 0), attn_heads=(1, 2), qna_heads=(2, 4)
    )
    return QnAViT(arch, window_sizes=(3, 3), out_indices=(1,)).eval()


def volo() -> nn.Module:
    """Outlook attention, resized positions, and a class token."""
    arch = dict(embed_dims=12, depths=(1, 1), num_heads=(3, 4), stem_dims=8)
    return VOLO(arch, pretrain_img_size=32, out_indices=(1,), with_cls_token=True).eval()


def images(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize("build", [qna_vit, volo])
def test_backbone(build, tmp_path):
    """ELSA-Swin of all sizes is in tools/test_export_onnx.py, and shifted windows are a mixer."""
    torch.manual_seed(0)
    image, *others = images((2, 3, 40, 56), (3, 3, 51, 37), (1, 3, 24, 17))
    export_onnx(build(), image, tmp_path / "model.onnx", others=others)


class Mixers(nn.Module):
    """All mixers, side by side."""

    def __init__(self) -> None:
        super().__init__()
        small = dict(kernel_size=3, window_size=3, shift=True)
        self.mixers = nn.ModuleDict()
        for name, mixer in MIXERS.items():
            defaults = {k: p.default for k, p in inspect.signature(mixer).parameters.items()}
            settings = {k: v for k, v in small.items() if defaults.get(k) is not None}
            self.mixers[name] = mixer(12, 3, **settings)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.permute(0, 2, 3, 1)
        return {name: mixer(x) for name, mixer in self.mixers.items()}


@pytest.mark.slow
def test_mixers(tmp_path):
    torch.manual_seed(0)
    image, *others = images((2, 12, 7, 9), (3, 12, 6, 5), (1, 12, 2, 3))
    export_onnx(Mixers().eval(), image, tmp_path / "model.onnx", others=others)


def test_windows_that_fit_need_one_size(tmp_path):
    """In the last stage, the map is smaller than a window. The batch stays free."""
    model = elsa_swin(fit_window=True)
    image, another, larger = images((1, 3, 16, 24), (2, 3, 16, 24), (1, 3, 40, 56))
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"^PyTorch cannot .*: ValueError: fit_window=True makes"):
        export_onnx(model, image, path, others=[larger])
    assert not list(tmp_path.iterdir())
    export_onnx(model, image, path, free=("batch",), others=[another])


class Refusing(nn.Module):
    """It runs everywhere but in an export to ONNX. TorchDynamo does not see such an export."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            raise NotImplementedError("this layer has no plain form")
        return x


def test_the_first_error_is_shown(tmp_path):
    """PyTorch's exporter goes on with TorchDynamo, which hides the cause."""
    with pytest.raises(ExportError, match=r"NotImplementedError: this layer has no plain form$"):
        export_onnx(Refusing(), torch.zeros(2, 3, 8, 9), tmp_path / "model.onnx")


class OneBatch(nn.Module):
    """It takes the batch of the example for a number, as Swin of MMSegmentation does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * int(len(x) / (x.shape[2] / x.shape[2]))


def test_sizes_that_only_the_example_has(tmp_path):
    """The error names the way out."""
    image, other = images((2, 3, 6, 5), (3, 3, 7, 8))
    with pytest.raises(ExportError, match="--static fixes all sizes"):
        export_onnx(OneBatch(), image, tmp_path / "model.onnx", others=[other])
    assert not list(tmp_path.iterdir())


def test_a_difference_leaves_no_file(tmp_path):
    """An old file stays as it was."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    model = nn.Sequential(nn.Conv2d(3, 64, 7), nn.GELU(), nn.Conv2d(64, 4, 7)).eval()
    (image,) = images((2, 3, 32, 32))
    with pytest.raises(ExportError, match=r"differ from PyTorch by .* and the limit is 1\.0e-12"):
        export_onnx(model, image, path, free=(), tolerance=1e-12)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
