"""Every way of loading a checkpoint treats tables of other windows alike."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModule, ExponentialMovingAverage
from mmengine.runner import load_checkpoint
from torch import nn

from mmlocal.models.backbones import ELSAVOLO, VOLO, ELSASwin, GhostDeiT, LocalSwin, QnAViT
from mmlocal.models.necks import QnAPooling

ELSA_ARCH = dict(embed_dims=6, depths=(1, 1), num_heads=(1, 2), group_width=2)
QNA_ARCH = dict(embed_dims=4, attn_depths=(0, 1), qna_depths=(1, 0), attn_heads=(1, 2),
                qna_heads=(2, 4))  # fmt: skip
SWIN_ARCH = dict(embed_dims=6, depths=(1,), num_heads=(1,))
VOLO_ARCH = dict(embed_dims=8, depths=(1, 1), num_heads=(1, 1), stem_dims=4)
DEIT_ARCH = dict(embed_dims=8, num_layers=1, num_heads=2)


def elsa(size: int = 4, **kwargs) -> nn.Module:
    """ELSA-Swin whose window and position embedding depend on ``size``."""
    shape = dict(window_size=size, pretrain_img_size=8 * size, use_abs_pos_embed=True)
    return ELSASwin(ELSA_ARCH, kernel_size=3, out_indices=(0, 1), **shape, **kwargs)


def qna(size: int = 3, **kwargs) -> nn.Module:
    """QnA-ViT whose windows of both kinds depend on ``size``."""
    arch = QNA_ARCH | dict(kernel_size=size)
    return QnAViT(arch, window_sizes=(size, size), out_indices=(0, 1), **kwargs)


def swin(mixer: str) -> nn.Module:
    return LocalSwin(SWIN_ARCH, mixers=dict(type=mixer), out_indices=(0,))


class Model(BaseModule):
    """A backbone in a model with a head, so that the backbone's name is a prefix of the keys."""

    def __init__(self, backbone: nn.Module, classes: int = 3) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(2, classes)


def strictly(model: nn.Module, path: str) -> nn.Module:
    model.load_state_dict(torch.load(path))
    return model


def by_mmengine(model: nn.Module, path: str) -> nn.Module:
    load_checkpoint(model, path)  # as load_from, resuming and testing do
    return model


def in_a_copy(model: nn.Module, path: str) -> nn.Module:
    return strictly(copy.deepcopy(model), path)


def unpickled(model: nn.Module, path: str) -> nn.Module:
    return strictly(pickle.loads(pickle.dumps(model)), path)


def averaged(model: nn.Module, path: str) -> nn.Module:
    return strictly(ExponentialMovingAverage(model).module, path)


def save(model: nn.Module, path: Path) -> str:
    for parameter in model.parameters():  # tables may start at 0
        nn.init.normal_(parameter)
    torch.save(model.state_dict(), path)
    return str(path)


@pytest.mark.parametrize("load", [strictly, by_mmengine, in_a_copy, unpickled, averaged])
@pytest.mark.parametrize(("build", "old", "new"), [(elsa, 4, 6), (qna, 3, 5)])
def test_other_windows_are_resized_as_by_init_cfg(build, old, new, load, tmp_path):
    path = save(Model(build(old)), tmp_path / "model.pth")
    init_cfg = dict(type="Pretrained", checkpoint=path, prefix="backbone.")
    expected = build(new, init_cfg=init_cfg)
    expected.init_weights()
    sizes = {k: v.shape for k, v in build(old).state_dict().items()}
    assert any(value.shape != sizes[key] for key, value in expected.state_dict().items())
    model = load(Model(build(new)), path)
    for key, value in expected.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], value), key
    assert torch.equal(model.head.weight, torch.load(path)["head.weight"])


def test_the_checkpoint_itself_is_left_alone():
    state_dict = elsa(4).state_dict()
    shapes = {key: value.shape for key, value in state_dict.items()}
    elsa(6).load_state_dict(state_dict)
    assert {key: value.shape for key, value in state_dict.items()} == shapes


def test_pooling_over_another_map():
    old, new = QnAPooling(4, 2, map_size=3), QnAPooling(4, 2, map_size=5)
    nn.init.constant_(old.qna.rel_pos_table, 0.25)
    new.load_state_dict(old.state_dict())
    torch.testing.assert_close(new.qna.rel_pos_table, torch.full((25, 4), 0.25))


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        (elsa(), ELSASwin(ELSA_ARCH, kernel_size=5, out_indices=(0, 1)), "attn_conv.weight"),
        (elsa(in_channels=1), elsa(), "patch_embed.proj.weight"),
        (qna(num_queries=1), qna(), "query"),
        (
            GhostDeiT(DEIT_ARCH, pretrain_img_size=32),
            GhostDeiT(DEIT_ARCH, pretrain_img_size=64),
            "ghost_mul",
        ),
    ],
    ids=["kernel", "channels", "queries", "ghost heads"],
)
def test_other_shapes_are_refused(old, new, key, tmp_path):
    """MMEngine alone would only log such tensors, and leave them random."""
    torch.save(Model(old).state_dict(), tmp_path / "model.pth")
    message = rf"{type(new).__name__} cannot take the checkpoint: .* mismatched \(.*{key}: "
    for load in (strictly, by_mmengine):
        with pytest.raises(ValueError, match=message):
            load(Model(new), str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    ("model", "old"),
    [(qna(), r"stages.\1."), (GhostDeiT(DEIT_ARCH), r"layers.\1.")],
    ids=["qna", "ghost"],
)
def test_other_names_of_the_blocks_are_refused(model, old, tmp_path):
    """Of older versions or other code: MMEngine alone would log them, and leave blocks random."""
    state_dict = Model(model).state_dict()
    renamed = {re.sub(r"\bstages\.(\d+)\.blocks\.", old, k): v for k, v in state_dict.items()}
    renamed = {k: v for k, v in renamed.items() if "downsample" not in k}
    torch.save(renamed, tmp_path / "old.pth")
    message = rf"{type(model).__name__} cannot take .* no tensor of backbone.stages .* but \d+ oth"
    with pytest.raises(ValueError, match=message):
        by_mmengine(Model(model), str(tmp_path / "old.pth"))
    rest = {k: v for k, v in renamed.items() if not k.startswith("backbone.")}
    torch.save(rest, tmp_path / "rest.pth")
    by_mmengine(Model(model), str(tmp_path / "rest.pth"))


def test_another_head_is_not_refused(tmp_path):
    torch.save(Model(elsa(4), classes=7).state_dict(), tmp_path / "model.pth")
    by_mmengine(Model(elsa(6)), str(tmp_path / "model.pth"))


@pytest.mark.parametrize(
    ("old", "new", "layer"),
    [
        (swin("WindowAttention"), swin("HaloAttention"), "stages.0.blocks.0.attn"),
        (swin("QnA"), elsa(), "stages.0.blocks.0.attn"),
        (
            VOLO(VOLO_ARCH, out_indices=(1,)),
            ELSAVOLO(VOLO_ARCH, out_indices=(1,)),
            "stages.0.blocks.0.attn",
        ),
        (qna(), qna(downsample="conv"), "stages.0.downsample"),
        (qna(stem="resnet"), qna(), "patch_embed"),
    ],
    ids=["window and halo", "qna and elsa", "volo and elsa", "downsampling", "stem"],
)
def test_other_layers_are_refused(old, new, layer, tmp_path):
    """MMEngine alone would only log them, and tools/test.py would test random layers."""
    torch.save(Model(old).state_dict(), tmp_path / "model.pth")
    message = re.escape(f"backbone.{layer} is another layer there, with backbone.{layer}.")
    with pytest.raises(ValueError, match=message):
        by_mmengine(Model(new), str(tmp_path / "model.pth"))
