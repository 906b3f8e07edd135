"""The block of DWNet; its agreement with the official code is in test_dwnet_parity.py."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from mmlocal.layers import (
    DepthwiseConv,
    DWNetBlock,
    DynamicDepthwiseConv,
    InhomogeneousDepthwiseConv,
)

MIXERS = [DepthwiseConv, DynamicDepthwiseConv, InhomogeneousDepthwiseConv]
mixers = pytest.mark.parametrize("mixer", MIXERS, ids=lambda mixer: mixer.__name__)


def make(mixer: type = DynamicDepthwiseConv, **kwargs) -> DWNetBlock:
    torch.manual_seed(0)
    return DWNetBlock(12, mixer(12, 3, kernel_size=3), **kwargs)


@pytest.mark.parametrize(
    ("mixer", "norm"), [*((mixer, "BN") for mixer in MIXERS), (DynamicDepthwiseConv, "SyncBN")]
)
def test_with_cp_counts_each_batch_once(mixer, norm):
    """Gradients and statistics are the same, bit for bit, also with dropped paths."""
    results = []
    for with_cp in (False, True):
        block = make(mixer, with_cp=with_cp, drop_rate=0.2, drop_path_rate=0.4)
        if norm == "SyncBN":
            block = nn.SyncBatchNorm.convert_sync_batchnorm(block)
        torch.manual_seed(1)
        for _ in range(2):
            x = torch.randn(4, 5, 6, 12, requires_grad=True)
            block(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in block.parameters()), *block.buffers()])
        assert {m.momentum for m in block.modules() if hasattr(m, "momentum")} == {0.1}
        assert block.bn1.num_batches_tracked == 2
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_with_cp_keeps_frozen_statistics():
    block = make(with_cp=True)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    before = deepcopy(block.state_dict())
    block(torch.randn(1, 5, 6, 12)).sum().backward()
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("with_cp", [False, True], ids=["plain", "with_cp"])
def test_compile(with_cp):
    x = torch.randn(2, 5, 6, 12)
    results = []
    for compiles in (False, True):
        block = make(with_cp=with_cp, pad_size_divisor=4)
        call = torch.compile(block, fullgraph=True, backend="aot_eager") if compiles else block
        call(x).square().sum().backward()
        results.append([*(p.grad for p in block.parameters()), *block.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@mixers
def test_padding(mixer):
    """Zeros at the right and bottom, of which the first convolution and the mixer see all."""
    block = make(mixer, pad_size_divisor=4).double()
    plain = make(mixer).double()
    x = torch.randn(2, 5, 8, 12, dtype=torch.float64)
    padded = torch.zeros(2, 8, 8, 12, dtype=torch.float64)
    padded[:, :5] = x
    torch.testing.assert_close(block.branch(x), plain.branch(padded)[:, :5], rtol=0, atol=0)
    assert not torch.allclose(block.branch(x), plain.branch(x))
    torch.testing.assert_close(block(padded), plain(padded), rtol=0, atol=0)


def test_one_position_in_training():
    block = make(DepthwiseConv)
    with pytest.raises(ValueError, match="needs more than one value per channel in training"):
        block(torch.randn(1, 1, 1, 12))
    block.eval()(torch.randn(1, 1, 1, 12))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="mlp_ratio must give at least one hidden channel"):
        make(mlp_ratio=0.01)
    with pytest.raises(ValueError, match="pad_size_divisor must be at least 1, got 0"):
        make(pad_size_divisor=0)
    with pytest.raises(TypeError, match="with_cp must be True or False, got 1"):
        make(with_cp=1)
    with pytest.raises(ValueError, match=r"drop_path_rate must be in \[0, 1\), got 1"):
        make(drop_path_rate=1)
    with pytest.raises(ValueError, match=r"embed_dims=12\), got \(2, 12, 5, 5\)"):
        make()(torch.zeros(2, 12, 5, 5))


def test_a_mixer_that_changes_the_shape():
    block = DWNetBlock(12, nn.Linear(12, 10))
    with pytest.raises(ValueError, match=r"attn must keep .* Linear returns \(2, 5, 5, 10\)"):
        block(torch.zeros(2, 5, 5, 12))
