"""Linear layers by 1x1 convolutions, and the reverse."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmlocal.layers.linear import Linear, PointwiseConv2d
from mmlocal.ops.linear import linear, onednn_is_faster, pointwise_conv2d

# Shapes of the input, without its channels.
SHAPES = [(3, 5, 7), (2, 9), (6,), (), (1, 1, 1), (0, 4, 4), (0, 9), (2, 3, 2, 2)]


@pytest.fixture(autouse=True)
def convolve(monkeypatch):
    """Convolve on any CPU."""
    monkeypatch.setattr("mmlocal.ops.linear._ONEDNN", True)


def test_only_amds_cpus_with_avx512_convolve():
    assert onednn_is_faster("AVX512", "AMD EPYC 9654")
    assert not onednn_is_faster("AVX2", "AMD EPYC 7763")
    assert not onednn_is_faster("AVX512", "Intel(R) Xeon(R)")
    assert not onednn_is_faster("AVX512", "")
    assert not onednn_is_faster("DEFAULT", "AMD EPYC 7763")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_equals_pytorchs_in_values_and_gradients(shape, bias):
    torch.manual_seed(0)
    tensors = [torch.randn(*shape, 6), torch.randn(10, 6), torch.randn(10) if bias else None]
    found, expected = [], []
    for function, results in ((linear, found), (F.linear, expected)):
        inputs = [x if x is None else x.clone().requires_grad_() for x in tensors]
        out = function(*inputs)
        out.square().sum().backward()
        results += [out, *(x.grad for x in inputs if x is not None)]
    assert found[0].is_contiguous()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


class Calls(TorchDispatchMode):
    """Collect the names of all operators."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def has_convolution(layer, x) -> bool:
    with Calls() as calls:
        layer(x)
    return "convolution" in calls.names


@pytest.mark.parametrize("shape", [(2, 9, 4), (2, 3, 5, 4)], ids=str)
def test_maps_and_windows_are_convolved(shape):
    layer = Linear(4, 8)
    assert has_convolution(layer, torch.randn(shape))
    exported = torch.export.export(layer, (torch.randn(shape),), strict=False)
    assert "conv" not in str(exported.graph)
    graphs = []
    compiled = torch.compile(layer, backend=lambda graph, inputs: graphs.append(graph) or graph)
    compiled(torch.randn(shape))
    assert "conv" in str(graphs[0].graph)


def test_second_gradients_and_many_weights():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 4), torch.randn(5, 4, requires_grad=True)
    (first,) = torch.autograd.grad(linear(x, weight).pow(3).sum(), weight, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), weight)
    (first_,) = torch.autograd.grad(F.linear(x, weight).pow(3).sum(), weight, create_graph=True)
    (second_,) = torch.autograd.grad(first_.square().sum(), weight)
    torch.testing.assert_close(second, second_, rtol=1e-4, atol=1e-2)
    weights = torch.randn(6, 5, 4)
    found = torch.func.vmap(lambda w: linear(x, w))(weights)
    torch.testing.assert_close(found, torch.stack([F.linear(x, w) for w in weights]))


def test_linear_takes_strided_inputs():
    torch.manual_seed(0)
    layer = Linear(4, 8)
    x = torch.randn(2, 4, 6, 10)[:, :, ::2].permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_left_to_pytorch(dtype):
    layer = Linear(4, 8).to(dtype)
    assert not has_convolution(layer, torch.randn(2, 3, 4).to(dtype))


def test_autocast_and_meta_tensors_are_left_to_pytorch():
    layer = Linear(4, 8)
    x = torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert not has_convolution(layer, x)
    layer.to("meta")
    assert not has_convolution(layer, x.to("meta"))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x.to("meta"))
    assert counter.get_total_flops() == 2 * 6 * 4 * 8


@pytest.fixture
def multiply(monkeypatch):
    """Compute 1x1 convolutions by linear layers on any CPU."""
    monkeypatch.setattr("mmlocal.ops.linear._ONEDNN", False)


@pytest.mark.usefixtures("multiply")
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("shape", [(2, 6, 5, 7), (1, 6, 1, 1), (0, 6, 4, 4), (2, 1, 3, 3)], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_pointwise_convolution_equals_pytorchs(shape, bias, layout):
    torch.manual_seed(0)
    x = torch.randn(shape).contiguous(memory_format=layout)
    tensors = [x, torch.randn(10, shape[1], 1, 1), torch.randn(10) if bias else None]
    found, expected = [], []
    for function, results in ((pointwise_conv2d, found), (F.conv2d, expected)):
        inputs = [t if t is None else t.clone().requires_grad_() for t in tensors]
        out = function(*inputs)
        out.square().sum().backward()
        results += [out, *(t.grad for t in inputs if t is not None)]
    assert found[0].stride() == expected[0].stride()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("multiply")
@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")
def test_pointwise_convolution_is_a_product_of_channels_last_maps_alone():
    layer = PointwiseConv2d(4, 8, 1)
    assert layer.weight.shape == (8, 4, 1, 1)
    x = torch.randn(2, 4, 3, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert not has_convolution(layer, last)
    assert has_convolution(layer, x)
    assert "conv" in str(torch.export.export(layer, (last,)).graph)
    with torch.autocast("cpu", torch.bfloat16):
        assert has_convolution(layer, last)
    assert has_convolution(layer.double(), last.double())
    assert has_convolution(PointwiseConv2d(4, 8, 3, padding=1), last)


@pytest.mark.parametrize("channels", [4, 8, 32])
@pytest.mark.parametrize("size", [(56, 56), (5, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize(
    "settings",
    [dict(stride=2), dict(stride=(2, 3)), dict(stride=2, padding="valid", dilation=2)],
    ids=str,
)
def test_strided_pointwise_convolution(channels, size, layout, settings):
    """Values and gradients are right. With few channels, oneDNN's gradient ends the process."""
    torch.manual_seed(0)
    layer = PointwiseConv2d(channels, 16, 1, **settings)
    x = torch.randn(2, channels, *size).contiguous(memory_format=layout).requires_grad_()
    out = layer(x)
    out.square().sum().backward()
    inputs = [t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias)]
    expected = F.conv2d(*inputs, **settings)
    expected.square().sum().backward()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((x, layer.weight, layer.bias), inputs, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(x[0]), out[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.func.vmap(layer)(x), out, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("multiply")
def test_pointwise_convolution_of_several_samples():
    torch.manual_seed(0)
    layer = PointwiseConv2d(8, 10, 1)
    x = torch.randn(3, 2, 5, 6, 8).movedim(-1, 2)
    found = torch.func.vmap(layer)(x)
    torch.testing.assert_close(found, torch.stack([layer(one) for one in x]))
    torch.compile(layer, backend="eager", fullgraph=True)(x[0])
