"""Depth-wise convolutions; their agreement with the official code is in test_dwnet_parity.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlocal.layers import DepthwiseConv, DynamicDepthwiseConv, InhomogeneousDepthwiseConv
from mmlocal.layers.dynamic_depthwise_conv import convolve, convolve_by_op
from mmlocal.layers.kernel_predictor import KernelPredictor

LAYERS = [DepthwiseConv, DynamicDepthwiseConv, InhomogeneousDepthwiseConv]
DYNAMIC = LAYERS[1:]
layers = pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)


def make(kind: type, dims: int = 12, heads: int = 3, **kwargs) -> nn.Module:
    """A layer whose batch norms do something in eval mode, too."""
    torch.manual_seed(0)
    layer = kind(dims, heads, **kwargs)
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return layer


def taps(x: torch.Tensor, kernel_size: int) -> torch.Tensor:
    """``(B, H, W, C)`` to the taps of each position, ``(B, H, W, C, kernel_size**2)``."""
    batch, height, width, dims = x.shape
    columns = F.unfold(x.permute(0, 3, 1, 2), kernel_size, padding=kernel_size // 2)
    return columns.view(batch, dims, -1, height, width).permute(0, 3, 4, 1, 2)


def predicted(predictor: KernelPredictor, x: torch.Tensor) -> torch.Tensor:
    """The numbers that a predictor in eval mode gives for vectors ``(..., C)``."""
    bn = predictor.bn
    x = F.linear(x, predictor.reduce.weight[:, :, 0, 0], predictor.reduce.bias)
    x = (x - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * bn.weight + bn.bias
    return F.linear(x.relu(), predictor.expand.weight[:, :, 0, 0], predictor.expand.bias)


def formula(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The formula of the docstring of ``layer``, by unfolding."""
    if isinstance(layer, DepthwiseConv):
        kernels = layer.conv.weight.flatten(1)
        return (taps(x, layer.conv.kernel_size[0]) * kernels).sum(-1) + layer.conv.bias
    windows = taps(x, layer.kernel_size)
    if isinstance(layer, DynamicDepthwiseConv):
        kernels = predicted(layer.predictor, x.mean((1, 2))).unflatten(1, (x.shape[3], -1))
        return (windows * kernels[:, None, None]).sum(-1) + layer.bias
    kernels = predicted(layer.predictor, x).unflatten(3, (3, 1, -1))
    return (windows.unflatten(3, (3, -1)) * kernels).sum(-1).flatten(3)


@layers
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 5), (1, 7, 7), (3, 9, 4)], ids=str)
def test_formula(kind, kernel_size, size):
    layer = make(kind, kernel_size=kernel_size).double().eval()
    if kind is DynamicDepthwiseConv:
        nn.init.normal_(layer.bias)
    x = torch.randn(*size, 12, dtype=torch.float64, requires_grad=True)
    leaves = (x, *layer.parameters())
    out, expected = layer(x), formula(layer, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(out)
    ours = torch.autograd.grad((out * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for grad, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(1, 1, 1, 8), (3, 9, 4, 5), (2, 16, 17, 24)], ids=str)
def test_both_ways_to_convolve(size):
    """The one for training on a CPU, and the one for all else."""
    torch.manual_seed(0)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    kernels = torch.randn(size[0], size[3], 7, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(size, dtype=torch.float64)
    results = []
    for way in (convolve, convolve_by_op):
        out = way(x, kernels, 7)
        results.append((out, *torch.autograd.grad((out * weights).sum(), (x, kernels))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_start():
    """The bias of the dynamic convolution starts at 0, all else as PyTorch's convolutions."""
    assert not make(DynamicDepthwiseConv).bias.any()
    assert make(DynamicDepthwiseConv, bias=False).bias is None
    assert make(DepthwiseConv, bias=False).conv.bias is None
    assert make(InhomogeneousDepthwiseConv).predictor.reduce.bias is not None
    assert make(DynamicDepthwiseConv).predictor.reduce.bias is None


@pytest.mark.parametrize("kind", DYNAMIC)
def test_one_value_per_channel_in_training(kind):
    """The dynamic convolution has one per image, the inhomogeneous one also one per position."""
    layer = make(kind)
    message = r"more than one value per channel in training, .* Train with at least 2 images"
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 1, 1, 12))
    layer(torch.randn(2, 1, 1, 12)).sum().backward()
    if kind is DynamicDepthwiseConv:
        with pytest.raises(ValueError, match=message):
            layer(torch.randn(1, 5, 5, 12))
    else:
        layer(torch.randn(1, 5, 5, 12))
    layer.predictor.bn.eval()
    layer(torch.randn(1, 1, 1, 12)).sum().backward()
    layer.eval()
    layer(torch.randn(1, 1, 1, 12))


def test_sync_bn_replaces_the_batch_norm():
    layer = make(DynamicDepthwiseConv)
    x = torch.randn(2, 5, 6, 12)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(make(DynamicDepthwiseConv))
    assert isinstance(synced.predictor.bn, nn.SyncBatchNorm)
    torch.testing.assert_close(synced(x), layer(x), rtol=0, atol=0)  # one process


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_cannot_overflow(dtype):
    """The dynamic convolution stays in float32: its sums exceed the range of float16."""
    layer = make(DynamicDepthwiseConv)
    x = 300 * torch.rand(2, 6, 6, 12)
    with torch.no_grad():
        layer.predictor.expand.bias.fill_(50)
        exact = layer(x)
        assert exact.abs().max() > torch.finfo(torch.float16).max
        with torch.autocast("cpu", dtype=dtype):
            out = layer(x.to(dtype))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, layer(x.to(dtype).float()), rtol=1e-6, atol=0)


@layers
def test_half_precision(kind):
    layer = make(kind).eval()
    x = torch.randn(2, 6, 7, 12).bfloat16()
    expected = layer(x.float())
    out = layer.bfloat16()(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=0.05, atol=0.05)


@layers
def test_compile_and_export(kind):
    layer = make(kind)
    x = torch.randn(2, 6, 7, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    grads = []
    for module in (layer, compiled):
        layer.zero_grad()
        module(x).square().sum().backward()
        grads.append([p.grad.clone() for p in layer.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    dims = dict.fromkeys(range(3), torch.export.Dim.AUTO)
    program = torch.export.export(layer.eval(), (x,), dynamic_shapes=(dims,))
    other = torch.randn(3, 9, 4, 12)
    torch.testing.assert_close(program.module()(other), layer(other))


@pytest.mark.parametrize(
    ("kind", "arguments", "error", "message"),
    [
        (DepthwiseConv, dict(kernel_size=4), ValueError, "kernel_size must be a positive odd"),
        (DynamicDepthwiseConv, dict(kernel_size=(3, 5)), ValueError, "a pair of equal ones"),
        (DynamicDepthwiseConv, dict(reduction=0), ValueError, "reduction must be at least 1"),
        (DynamicDepthwiseConv, dict(reduction=13), ValueError, "at most embed_dims=12, got .*=13"),
        (DynamicDepthwiseConv, dict(bias=1), TypeError, "bias must be True or False, got 1"),
        (DepthwiseConv, dict(bias="no"), TypeError, "bias must be True or False, got 'no'"),
        (DepthwiseConv, dict(heads=0), ValueError, "num_heads must be at least 1, got 0"),
        (
            InhomogeneousDepthwiseConv,
            dict(heads=5),
            ValueError,
            "num_heads must divide embed_dims=12, got num_heads=5",
        ),
        (InhomogeneousDepthwiseConv, dict(kernel_size=2), ValueError, "positive odd number, got 2"),
    ],
)
def test_wrong_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        make(kind, **arguments)


@layers
def test_wrong_input(kind):
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got \(2, 12, 6"):
        make(kind)(torch.zeros(2, 12, 6, 6))
