"""Swin's frame with any mixers; ELSASwin's tests cover what the frame does with every mixer."""

from unittest.mock import patch

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn

from mmlocal.layers import ELSA, MIXERS, EvenWindowAttention, QnA, TransformerBlock, WindowAttention
from mmlocal.models.backbones import ELSASwin, LocalSwin
from mmlocal.models.backbones.local_swin import BLOCKS
from mmlocal.registry import MODELS

TINY = dict(embed_dims=12, depths=(1, 2), num_heads=(1, 2))


class Mean(nn.Module):
    """A user's own mixer, which nobody registered: the mean of the map."""

    def __init__(self, embed_dims: int, num_heads: int, factor: float = 1.0) -> None:
        super().__init__()
        self.num_heads, self.factor = num_heads, factor
        self.proj = nn.Linear(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.proj(x - x.mean((1, 2), keepdim=True))


class Cut(nn.Module):
    """A mixer that loses a row, or all but one column."""

    def __init__(self, embed_dims: int, num_heads: int, columns: bool = False) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :1] if self.columns else x[:, 1:]


def make(seed: int = 0, **kwargs) -> LocalSwin:
    torch.manual_seed(seed)
    return LocalSwin(**dict(arch=TINY, drop_path_rate=0.0, out_indices=(0, 1)) | kwargs)


def mixers(backbone: LocalSwin) -> list[list[nn.Module]]:
    return [[block.attn for block in stage.blocks] for stage in backbone.stages]


def kinds(backbone: LocalSwin) -> list[list[str]]:
    return [[type(mixer).__name__ for mixer in stage] for stage in mixers(backbone)]


def test_it_is_swin_unless_told_otherwise():
    backbone = LocalSwin()
    assert [len(stage.blocks) for stage in backbone.stages] == [2, 2, 6, 2]
    for stage in mixers(backbone):
        assert all(type(mixer) is WindowAttention for mixer in stage)
        assert [mixer.shift for mixer in stage] == [i % 2 == 1 for i in range(len(stage))]
    assert [stage[0].w_msa.num_heads for stage in mixers(backbone)] == [3, 6, 12, 24]


@pytest.mark.parametrize(
    ("arch", "number"), [("tiny", 28_288_354), ("small", 49_606_258), ("base", 87_768_224)]
)
def test_parameter_counts(arch, number):
    """Swin Transformers with a classifier of 1000 classes have 28.3, 49.6 and 87.8 million."""
    with torch.device("meta"):
        backbone = LocalSwin(arch, out_indices=(3,))
        head = nn.Linear(backbone.num_features[-1], 1000)
    assert sum(p.numel() for part in (backbone, head) for p in part.parameters()) == number


def test_each_stage_or_block_names_its_mixer():
    elsa, qna, mean = dict(type="ELSA", kernel_size=3), dict(type=QnA), dict(type=Mean, factor=0.5)
    assert kinds(make(mixers=elsa)) == [["ELSA"], ["ELSA", "ELSA"]]
    assert kinds(make(mixers=[qna, elsa])) == [["QnA"], ["ELSA", "ELSA"]]
    backbone = make(mixers=(elsa, [qna, mean]))
    assert kinds(backbone) == [["ELSA"], ["QnA", "Mean"]]
    assert mixers(backbone)[1][1].factor == 0.5
    assert mixers(backbone)[1][1].num_heads == 2
    assert mixers(make(mixers=[elsa, mean | dict(num_heads=4)]))[1][0].num_heads == 4
    assert elsa == dict(type="ELSA", kernel_size=3)


def test_a_config_builds_it():
    cfg = ConfigDict(
        type="mmlocal.LocalSwin",
        arch=dict(TINY),
        mixers=[dict(type="ELSA", kernel_size=3), [dict(type="QnA"), dict(type=Mean)]],
        out_indices=(0, 1),
    )
    assert kinds(MODELS.build(cfg)) == [["ELSA"], ["QnA", "Mean"]]


@pytest.mark.parametrize(
    ("size", "block"), [((4, 4), "transformer"), ((37, 50), "transformer"), ((37, 50), "dwnet")]
)
@pytest.mark.parametrize("name", MIXERS)
def test_every_mixer(name, size, block):
    """Any image gives finite maps, and every parameter has a gradient."""
    backbone = make(mixers=dict(type=name), block=block)
    outs = backbone(torch.randn(2, 3, *size))
    assert [tuple(out.shape) for out in outs] == [
        (2, 12 * 2**i, -(-size[0] // (4 * 2**i)), -(-size[1] // (4 * 2**i))) for i in range(2)
    ]
    sum(out.square().sum() for out in outs).backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_elsa_swin_is_one_choice_of_mixers():
    """Names and numbers agree, with equal parameters."""
    arch = dict(TINY, group_width=4)
    elsa_swin = ELSASwin(arch, kernel_size=3, window_size=4, out_indices=(0, 1), qk_scale=0.3)
    elsa = dict(type="ELSA", kernel_size=3, group_width=4, qkv_bias=True, qk_scale=1, lam=0)
    window = dict(type="WindowAttention", window_size=4, qk_scale=0.3)
    backbone = make(mixers=[elsa, window])
    backbone.load_state_dict(elsa_swin.state_dict())
    image = torch.randn(1, 3, 37, 50)
    for ours, theirs in zip(backbone.eval()(image), elsa_swin.eval()(image), strict=True):
        assert torch.equal(ours, theirs)


def test_arguments_reach_the_blocks():
    backbone = make(drop_rate=0.1, mlp_ratio=2, with_cp=True, drop_path_rate=0.2)
    assert backbone.drop_after_pos.p == 0.1
    blocks = [block for stage in backbone.stages for block in stage.blocks]
    assert all(type(block) is TransformerBlock and block.with_cp for block in blocks)
    assert [block.mlp.fc1.out_features for block in blocks] == [24, 48, 48]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0, 0.1, 0.2])


def test_kinds_of_blocks():
    backbone = make(block="dwnet", norm_eval=True, mlp_ratio=2, with_cp=True).train()
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3 * 4
    assert not any(norm.training for norm in norms)
    assert backbone.stages[1].blocks[0].mlp.fc1.out_features == 48
    assert backbone.stages[1].blocks[0].with_cp

    class Plain(TransformerBlock):
        """A kind of block that this test adds."""

    with patch.dict(BLOCKS, plain=Plain):
        backbone = make(block="plain")
    assert all(type(block) is Plain for stage in backbone.stages for block in stage.blocks)


def test_norm_eval():
    class Normed(Mean):
        def __init__(self, embed_dims: int, num_heads: int) -> None:
            super().__init__(embed_dims, num_heads)
            self.norm = nn.BatchNorm2d(embed_dims)

    backbone = make(mixers=dict(type=Normed), norm_eval=True).train()
    assert not any(mixer.norm.training for stage in mixers(backbone) for mixer in stage)
    assert mixers(backbone)[0][0].training


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(mixers=dict(type="QnAs")), ValueError, r"unknown mixer 'QnAs': did you mean QnA\?"),
        (
            dict(mixers=[dict(type="ELSA"), dict(type="Els")], out_indices=(0,)),
            ValueError,
            "unknown mixer 'Els'",
        ),
        (dict(mixers="ELSA"), TypeError, "a mixer must be a dict with the key 'type', got 'ELSA'"),
        (dict(mixers=dict(kernel_size=3)), ValueError, "a mixer must have the key 'type'"),
        (dict(mixers={}), ValueError, "a mixer must have the key 'type'"),
        (dict(mixers=[]), ValueError, "one entry for each of the 2 stages of arch, got 0"),
        (
            dict(mixers=[dict(type="ELSA")] * 3),
            ValueError,
            "mixers must have one entry for each of the 2 stages of arch, got 3",
        ),
        (
            dict(mixers=[dict(type="ELSA"), [dict(type="ELSA")]]),
            ValueError,
            r"mixers\[1\] must have one entry for each of the 2 blocks of this stage, got 1",
        ),
        (
            dict(mixers=dict(type="ELSA", kernel=3)),
            TypeError,
            r"mixer .*'kernel': 3\} does not fit ELSA: .*'kernel'",
        ),
        (dict(mixers=dict(type=Mean, width=1)), TypeError, "does not fit Mean: .*'width'"),
        (dict(block="conv"), ValueError, "block must be one of transformer.*, got 'conv'"),
        (dict(arch="huge"), ValueError, r"arch must be one of \['base', 'small', 'tiny'\]"),
        (dict(arch=TINY | dict(group_width=8)), ValueError, "arch must have .*'group_width'"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


@pytest.mark.parametrize(
    ("columns", "shape"), [(False, r"\(1, 5, 6, 12\)"), (True, r"\(1, 6, 1, 12\)")]
)
def test_a_mixer_that_changes_the_size(columns, shape):
    """A single column would broadcast over the map without the error."""
    backbone = make(mixers=dict(type=Cut, columns=columns))
    message = rf"attn must keep the shape of its input \(1, 6, 6, 12\), but Cut returns {shape}"
    with pytest.raises(ValueError, match=message):
        backbone(torch.zeros(1, 3, 24, 24))


@pytest.mark.slow
def test_compile_and_export():
    """One graph has three kinds of mixers."""
    torch.compiler.reset()
    backbone = make(
        arch=dict(embed_dims=6, depths=(1, 2), num_heads=(1, 2)),
        mixers=[dict(type=ELSA, kernel_size=3), [dict(type=QnA), dict(type=EvenWindowAttention)]],
    ).eval()
    image = torch.randn(2, 3, 24, 32)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(backbone, (image,)).module()
    for model in (compiled, exported):
        for ours, plain in zip(model(image), backbone(image), strict=True):
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
