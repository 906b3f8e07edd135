"""The linear layer by a 1x1 convolution."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmlocal.layers.linear import Linear, linear

# Shapes of the input, without its channels.
SHAPES = [(3, 5, 7), (2, 9), (6,), (), (1, 1, 1), (0, 4, 4), (0, 9), (2, 3, 2, 2)]


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


def test_linear_takes_strided_inputs():
    torch.manual_seed(0)
    layer = Linear(4, 8)
    x = torch.randn(2, 4, 6, 10)[:, :, ::2].permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_left_to_pytorch(dtype):
    layer = Linear(4, 8).to(dtype)
    x = torch.randn(3, 4).to(dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_autocast_and_meta_tensors_are_left_to_pytorch():
    layer = Linear(4, 8)
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    layer.to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x.to("meta"))
    assert counter.get_total_flops() == 2 * 3 * 4 * 8
