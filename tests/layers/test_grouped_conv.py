"""The convolution with narrow groups: the choice of a library, and that it stays an nn.Conv2d."""

import pytest
import torch
from torch import nn

from mmlocal.layers import ELSA
from mmlocal.layers.grouped_conv import GroupedConv2d

SAME = dict(kernel_size=3, padding=1, groups=2)


@pytest.fixture
def calls(monkeypatch):
    """The calls of the op that the layer makes."""
    made = []

    def op(*args, **kwargs):
        made.append(kwargs)
        return real(*args, **kwargs)

    from mmlocal.layers import grouped_conv

    real = grouped_conv.grouped_conv2d
    monkeypatch.setattr(grouped_conv, "grouped_conv2d", op)
    return made


def both(settings, channels=8, out_channels=None, dtype=torch.float32):
    """Our layer, and one of PyTorch with the same parameters."""
    torch.manual_seed(0)
    ours = GroupedConv2d(channels, out_channels or channels, **settings, dtype=dtype)
    plain = nn.Conv2d(channels, out_channels or channels, **settings, dtype=dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize(
    ("settings", "by_op"),
    [
        (SAME, True),
        (SAME | dict(bias=False), True),
        (SAME | dict(kernel_size=7, padding=3), True),
        (SAME | dict(dilation=2, padding=2), True),
        (SAME | dict(padding=0), True),
        (SAME | dict(groups=1), False),
        (SAME | dict(groups=8), False),
        (SAME | dict(stride=2), False),
        (SAME | dict(kernel_size=(3, 5)), False),
        (SAME | dict(padding=(1, 2)), False),
        (SAME | dict(dilation=(1, 2)), False),
        (SAME | dict(padding="same"), False),
        (SAME | dict(padding_mode="circular"), False),
    ],
    ids=str,
)
def test_numbers_are_those_of_pytorch(settings, by_op, calls):
    ours, plain = both(settings, dtype=torch.float64)
    x = torch.randn(2, 8, 9, 11, dtype=torch.float64)
    found = []
    for layer in (ours, plain):
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        grads = torch.autograd.grad(out.square().sum(), [leaf, *layer.parameters()])
        found.append([out, *grads])
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-10)
    assert len(calls) == by_op


def test_wide_outputs_and_single_samples_are_left_to_pytorch(calls):
    wide, plain = both(SAME, 8, 16)
    x = torch.randn(1, 8, 5, 6)
    assert torch.equal(wide(x), plain(x))
    ours, plain = both(SAME)
    assert torch.equal(ours(x[0]), plain(x[0]))
    assert torch.equal(ours(x[:0]), plain(x[:0]))
    assert len(calls) == 1  # an empty batch is a batch


def test_other_devices_are_left_to_pytorch(calls):
    with torch.device("meta"):
        layer = GroupedConv2d(8, 8, **SAME)
        assert layer(torch.zeros(1, 8, 5, 6)).shape == (1, 8, 5, 6)
    assert not calls


def test_a_wrong_dtype_has_the_error_of_pytorch():
    layer, x = GroupedConv2d(8, 8, **SAME), torch.zeros(1, 8, 5, 6, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="type"):
        layer(x)


def test_autocast(calls):
    ours, plain = both(SAME)
    x = torch.randn(1, 8, 9, 11)
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = ours(x), plain(x)
    assert out.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    assert len(calls) == 1


def test_onnx_has_its_convolution():
    pytest.importorskip("onnxscript")
    layer, x = GroupedConv2d(8, 8, **SAME).eval(), torch.randn(1, 8, 5, 6)
    program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph] == ["Conv"]


def test_compiled():
    """The layer is one node of a whole graph."""
    torch.compiler.reset()
    layer, x = GroupedConv2d(8, 8, **SAME), torch.randn(1, 8, 5, 6)
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=keep)
    torch.testing.assert_close(compiled(x), layer(x))
    (graph,) = graphs
    assert [n for n in graph.graph.nodes if "grouped_conv2d" in str(n.target)]


def test_elsa_uses_it():
    layer = ELSA(32, 2, group_width=4)
    assert isinstance(layer.attn_conv, GroupedConv2d)
    assert layer.attn_conv.groups * 4 == layer.qk_dims
    assert {"attn_conv.weight", "attn_conv.bias"} < set(layer.state_dict())


def test_elsa_by_its_definition_has_second_derivatives():
    torch.manual_seed(0)
    layer = ELSA(8, 2, kernel_size=3, group_width=4, backend="reference").double()
    x = torch.randn(1, 3, 4, 8, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()
    assert second.abs().sum() > 0
