"""The frame of the backbones, tested by backbones that only this file has."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmlocal.layers import DropPath, PatchEmbed, PatchMerging, TransformerBlock
from mmlocal.models import backbones
from mmlocal.models.backbones import LocalBackbone

ARCH = dict(embed_dims=4, depths=(1, 2, 1))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm of ``(B, H, W, C)``."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Hierarchical(LocalBackbone):
    """A minimal subclass, with batch norms in blocks and at outputs."""

    arch_zoo = {"tiny": ARCH}  # noqa: RUF012

    def __init__(self, arch="tiny", drop_path_rate=0.0, out_indices=(0, 1, 2), frozen_stages=-1,
                 norm_eval=False, init_cfg=None):  # fmt: skip
        super().__init__(init_cfg)
        arch = self._resolve_arch(arch, {"embed_dims", "depths"}, dict(factor=2))
        dims = [arch["embed_dims"] * arch["factor"] ** i for i in range(len(arch["depths"]))]
        self.patch_embed = PatchEmbed(3, dims[0])
        self._build_stages(
            dims, arch["depths"], drop_path_rate, out_indices, frozen_stages, norm_eval
        )

    def _make_block(self, stage, index, drop_path_rate):
        dims = self.num_features[stage]
        return TransformerBlock(dims, nn.Linear(dims, dims), drop_path_rate=drop_path_rate,
                                norm1=nn.Identity, norm2=BatchNorm)  # fmt: skip

    def _make_downsample(self, stage, drop_path_rate):
        assert drop_path_rate == 0
        return PatchMerging(self.num_features[stage], self.num_features[stage + 1])

    def _make_norm(self, dims):
        return BatchNorm(dims)


class Positioned(nn.Module):
    """A merging that adds its own positions, as VOLO does after the first stage."""

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dims, out_dims, 2, 2)
        self.pos_embed = nn.Parameter(torch.randn(out_dims))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + self.pos_embed


class Columnar(Hierarchical):
    """All stages but the first share one map, and there is an embedding besides the patches."""

    _downsample_is_block = True

    def __init__(self, **kwargs):
        super().__init__(dict(embed_dims=4, depths=(1, 2, 1), factor=1), **kwargs)

    def _build_stages(self, *args):
        self.global_embed = nn.Parameter(torch.randn(4))
        super()._build_stages(*args)

    def _embed(self, x):
        return super()._embed(x) + self.global_embed

    def _make_downsample(self, stage, drop_path_rate):
        self.__dict__.setdefault("rates", []).append(drop_path_rate)
        return Positioned(4, 4) if stage == 0 else None


def rates(backbone: LocalBackbone) -> list[float]:
    return [m.drop_prob for m in backbone.modules() if isinstance(m, DropPath)]


def test_structure_of_names():
    backbone = Hierarchical()
    assert {name.rpartition(".")[0] for name, _ in backbone.named_parameters()} == {
        "patch_embed.proj", "patch_embed.norm",
        *(f"stages.{i}.blocks.{j}.{part}" for i, depth in enumerate(ARCH["depths"])
          for j in range(depth) for part in ("attn", "norm2", "mlp.fc1", "mlp.fc2")),
        *(f"stages.{i}.downsample.{part}" for i in range(2) for part in ("norm", "reduction")),
        "norm0", "norm1", "norm2",
    }  # fmt: skip
    outs = backbone(torch.randn(2, 3, 18, 33))
    assert [tuple(out.shape) for out in outs] == [(2, 4, 5, 9), (2, 8, 3, 5), (2, 16, 2, 3)]
    assert backbone.num_features == [4, 8, 16]


def test_outputs_are_in_the_order_of_the_stages():
    backbone = Hierarchical(out_indices=[2, 0])
    assert backbone.out_indices == (0, 2)
    assert [out.shape[1] for out in backbone(torch.randn(2, 3, 16, 16))] == [4, 16]


def test_ramp():
    """Over all stages, built or not; a merging takes a step if it is a block."""
    assert rates(Hierarchical(drop_path_rate=0.3)) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates(Hierarchical(drop_path_rate=0.3, out_indices=(1,))) == pytest.approx([0, 0.1, 0.2])
    backbone = Columnar(drop_path_rate=0.5)
    assert rates(backbone) == pytest.approx([0, 0.2, 0.3, 0.5])
    assert backbone.rates == pytest.approx([0.1, 0.4])


def test_merging_of_any_kind():
    """A stage without a merging passes its map to the next stage."""
    backbone = Columnar()
    assert [out.shape[2:] for out in backbone(torch.randn(2, 3, 16, 32))] == [
        (4, 8), (2, 4), (2, 4)
    ]  # fmt: skip
    assert backbone.stages[1].downsample is None


def test_depths():
    backbone = Columnar()
    found = {name: backbone.get_layer_depth(name) for name, _ in backbone.named_parameters()}
    assert {total for _, total in found.values()} == {4 + 2 + 2}
    for name, layer in {
        "patch_embed.proj.weight": 0,
        "global_embed": 0,
        "stages.0.blocks.0.attn.weight": 1,
        "stages.0.downsample.pos_embed": 2,
        "stages.1.blocks.1.attn.weight": 4,
        "stages.2.blocks.0.attn.weight": 6,
        "norm0.weight": 7,
    }.items():
        assert found[name][0] == layer, name
    assert backbone.get_layer_depth("head.weight") == (7, 8)
    merging = Hierarchical().get_layer_depth("b.stages.0.downsample.reduction.weight", "b.")
    assert merging == (1, 6)


@pytest.mark.parametrize("frozen_stages", [-1, 0, 1, 3])
def test_whatever_comes_first_is_frozen_first(frozen_stages):
    backbone = Columnar(frozen_stages=frozen_stages).train()
    frozen = ["patch_embed.", "global_embed"] if frozen_stages >= 0 else []
    for i in range(frozen_stages):
        frozen += [f"stages.{i}.", f"norm{i}."]
    for name, parameter in backbone.named_parameters():
        assert parameter.requires_grad != name.startswith(tuple(frozen)), name
    for name, module in backbone.named_modules():
        if name not in ("", "stages"):
            assert module.training != f"{name}.".startswith(tuple(frozen)), name


class Classifying(Columnar):
    """A module and a parameter work behind the stages, as VOLO's class attention does."""

    _after_stages = frozenset({"post_blocks", "cls_token"})

    def _build_stages(self, *args):
        self.post_blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.cls_token = nn.Parameter(torch.randn(4))
        super()._build_stages(*args)


def test_parts_behind_the_stages_are_no_embeddings():
    backbone = Classifying(frozen_stages=3).train()
    trained = {name for name, x in backbone.named_parameters() if x.requires_grad}
    assert trained == {"post_blocks.0.weight", "post_blocks.0.bias", "cls_token"}
    assert backbone.post_blocks[0].training
    assert {backbone.get_layer_depth(name) for name in trained} == {(7, 8)}
    assert backbone.get_layer_depth("global_embed") == (0, 8)


@pytest.mark.parametrize("norm_eval", [False, True])
def test_statistics_stay(norm_eval):
    """All batch norms stay in eval mode, in blocks and at outputs. All other modules train."""
    backbone = Hierarchical(norm_eval=norm_eval, out_indices=(0, 2)).train()
    for name, module in backbone.named_modules():
        assert module.training != (norm_eval and isinstance(module, BatchNorm)), name
    before = {name: x.clone() for name, x in backbone.named_buffers() if "mean" in name}
    sum(out.square().sum() for out in backbone(torch.randn(2, 3, 16, 16))).backward()
    buffers = dict(backbone.named_buffers())
    assert len(before) == 4 + 2
    assert all(torch.equal(buffers[name], x) == norm_eval for name, x in before.items())
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_every_file_is_imported():
    """A backbone is registered wherever its file is in the folder. No list names it."""
    (folder,) = map(Path, backbones.__path__)
    names = {f"mmlocal.models.backbones.{path.stem}" for path in folder.glob("[a-z]*.py")}
    assert len(names) > 5
    assert names <= set(sys.modules)


def test_without_blocks():
    class Empty(LocalBackbone):
        def __init__(self):
            super().__init__()
            self._build_stages([4], [1], 0.0, (0,), -1)

    with pytest.raises(NotImplementedError, match="Empty must define _make_block"):
        Empty()
