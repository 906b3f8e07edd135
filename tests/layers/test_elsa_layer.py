"""The ELSA layer; its agreement with the official code is in tests/models/test_elsa_parity.py."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlocal.layers import ELSA
from mmlocal.ops.elsa import BACKENDS, elsa_attention


def make(**kwargs) -> ELSA:
    torch.manual_seed(0)
    return ELSA(**dict(embed_dims=12, num_heads=3, kernel_size=5, group_width=4) | kwargs)


def test_interior_is_shift_equivariant():
    """Away from the border, moving the input moves the output; at the border, zeros differ."""
    layer = make(lam=1).double()
    x = torch.randn(1, 20, 22, 12, dtype=torch.float64)
    shifted = torch.zeros_like(x)
    shifted[:, 2:, 3:] = x[:, :-2, :-3]
    out, out_shifted = layer(x), layer(shifted)
    reach = 4  # the convolution for the map reads 2 pixels; the op reads 2 pixels
    a = out[:, reach:-reach, reach:-reach][:, :-2, :-3]
    b = out_shifted[:, reach:-reach, reach:-reach][:, 2:, 3:]
    assert a.shape[1] >= 10
    torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert not torch.allclose(out[:, :-2, :-3], out_shifted[:, 2:, 3:], atol=1e-3)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (5, 5), (6, 4)], ids=str)
def test_maps_smaller_than_the_kernel(size, dilation):
    """A small map is the corner of a larger one that is zero outside after the projection."""
    layer = make(dilation=dilation, qkv_bias=False).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    out = layer(x)
    assert out.shape == x.shape
    padded = torch.zeros(2, 16, 16, 12, dtype=torch.float64)
    padded[:, 4 : 4 + size[0], 4 : 4 + size[1]] = x.detach()
    inside = layer(padded)[:, 4 : 4 + size[0], 4 : 4 + size[1]]
    torch.testing.assert_close(out, inside, rtol=0, atol=1e-13)
    out.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("lam", [0, 0.5, 1, 1.5, 2])
@pytest.mark.parametrize("gamma", [0, 1])
def test_every_parameter_learns_from_the_start(lam, gamma):
    """This also holds for a fractional power of the random multiplicative ghost head."""
    layer = make(lam=lam, gamma=gamma)
    out = layer(torch.randn(1, 6, 7, 12))
    out.square().sum().backward()
    assert out.isfinite().all()
    names = {name for name, _ in layer.named_parameters()}
    assert ("ghost_mul" in names, "ghost_add" in names) == (lam != 0, gamma != 0)
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_initial_ghost_heads():
    torch.manual_seed(0)
    layer = ELSA(96, 3, lam=1, gamma=1)
    assert abs(layer.ghost_mul.mean().item()) < 0.05
    assert abs(layer.ghost_mul.std().item() - 1) < 0.05
    assert abs(layer.ghost_add.std().item() - 0.02) < 0.002
    assert (ELSA(96, 3, lam=0.5).ghost_mul >= 0).all()


@pytest.mark.parametrize(
    ("dims", "group_width", "expected"),
    [(96, 4, 64), (192, 8, 128), (384, 8, 256), (128, 8, 88), (256, 8, 176), (512, 8, 344)],
)
def test_query_dims_of_the_paper(dims, group_width, expected):
    assert ELSA(dims, 4, group_width=group_width).qk_dims == expected


def test_query_and_key_are_interchangeable():
    layer = make()
    x = torch.randn(1, 6, 7, 12)
    out = layer(x)
    q, k, v = (p.clone() for p in layer.qkv.weight.data.split((8, 8, 12)))
    bias = layer.qkv.bias.data.split((8, 8, 12))
    layer.qkv.weight.data = torch.cat((k, q, v))
    layer.qkv.bias.data = torch.cat((bias[1], bias[0], bias[2]))
    torch.testing.assert_close(layer(x), out)


def test_attention_dropout():
    """Its mean over many draws is the map without dropout; in eval mode it does nothing."""
    layer = make(attn_drop_rate=0.3, lam=1).double()
    x = torch.randn(1, 4, 5, 12, dtype=torch.float64)
    exact = layer.eval()(x)
    assert torch.equal(layer(x), exact)
    layer.train()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.cat([layer(x.expand(200, -1, -1, -1)) for _ in range(10)])
    assert draws.std(dim=0).max() > 0.01
    standard_error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - exact[0]).abs() < 5 * standard_error + 1e-9).all()
    out = layer(x)
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dilation", [1, 2])
def test_attention_maps(dilation):
    """The maps sum to 1, and the op weights the values by them."""
    layer = make(dilation=dilation, gamma=0, attn_drop_rate=0.5).double().eval()
    layer.proj = torch.nn.Identity()
    x = torch.randn(2, 6, 7, 12, dtype=torch.float64)
    maps = layer.attention_maps(x)
    assert maps.shape == (2, 3, 25, 6, 7)
    torch.testing.assert_close(maps.sum(dim=2), torch.ones(2, 3, 6, 7, dtype=torch.float64))
    assert (maps > 0).all()
    value = layer.qkv(x.permute(0, 3, 1, 2))[:, -12:]
    out = elsa_attention(value, maps.flatten(1, 2), kernel_size=5, dilation=dilation, softmax=False)
    torch.testing.assert_close(out.permute(0, 2, 3, 1), layer(x), rtol=0, atol=1e-14)
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
        layer.attention_maps(torch.zeros(1, 12, 4, 5))


@pytest.mark.parametrize("groups", [1, 3])
def test_the_op_gets_the_projection(groups, monkeypatch):
    """Groups and dropout prevent the folding. The numbers are the same, bit by bit."""
    layer = make(num_heads=3, group_width=3, qk_dims=9, groups=groups, attn_drop_rate=0.5)
    x = torch.randn(1, 4, 5, 12)
    out = layer.eval()(x)
    calls = []

    def op(value, features, weight, bias, *ghosts, **kwargs):
        calls.append(weight)
        return elsa_attention(value, layer.attn_proj(features), *ghosts, **kwargs)

    monkeypatch.setattr("mmlocal.layers.projected_attention.elsa_attention_projected", op)
    assert torch.equal(layer(x), out)
    layer.train()(x)
    assert calls == ([layer.attn_proj.weight] if groups == 1 else [])


def test_projection_dropout():
    layer = make(proj_drop_rate=0.5)
    x = torch.randn(1, 8, 8, 12)
    assert 0.3 < (layer(x) == 0).double().mean() < 0.7
    assert (layer.eval()(x) != 0).all()


@pytest.mark.parametrize(
    "backend", [b.name for b in BACKENDS if not b.not_supported_reasons(torch.empty(0))]
)
def test_backend_is_passed_on(backend):
    x = torch.randn(1, 4, 5, 12)
    torch.testing.assert_close(make(backend=backend)(x), make()(x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'no'"):
        make(backend="no")(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    layer = make().to(dtype)
    x = torch.randn(1, 6, 7, 12).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    exact = layer.double()(x.double())
    error = (out.double() - exact).abs().max() / exact.abs().max()
    assert error < {torch.float64: 1e-13, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


def test_autocast():
    layer = make(lam=1)
    x = torch.randn(2, 6, 7, 12)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() / exact.abs().max() < 3e-2
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        ({"kernel_size": -1}, "kernel_size must be a positive odd number, got -1"),
        ({"num_heads": 5}, "num_heads must divide v_dims=12 .* got num_heads=5"),
        ({"num_heads": 5, "v_dims": 24}, "num_heads must divide v_dims=24 .* got num_heads=5"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"groups": 7}, "groups must divide .* got groups=7"),
        ({"groups": 2}, "groups must divide .* num_heads .*=75, got groups=2"),
        ({"dilation": 0}, "dilation must be at least 1, got 0"),
        ({"group_width": 0}, "group_width must be at least 1, got 0"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
    ],
    ids=lambda x: "-".join(f"{k}{v}" for k, v in x.items()) if isinstance(x, dict) else None,
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_bad_input():
    layer = make()
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got \(4, 5, 12\)"):
        layer(torch.zeros(4, 5, 12))
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
        layer(torch.zeros(1, 12, 4, 5))


@pytest.mark.parametrize(("lam", "gamma"), [(0, 0), (0, 1), (1, 0), (2, -0.5), (0.5, 1)])
def test_ghost_filters_are_what_the_layer_uses(lam, gamma):
    torch.manual_seed(0)
    layer = ELSA(12, 3, 3, dilation=2, group_width=4, lam=lam, gamma=gamma).double()
    layer.proj = nn.Identity()
    x = torch.randn(2, 5, 6, 12, dtype=torch.float64)
    filters = layer.ghost_filters(layer.attention_maps(x), range(12))
    assert filters.shape == (2, 12, 9, 5, 6)
    value = layer.qkv(x.permute(0, 3, 1, 2))[:, -12:]
    windows = F.unfold(value, 3, dilation=2, padding=2).reshape(2, 12, 9, 5, 6)
    expected = layer(x).permute(0, 3, 1, 2)
    torch.testing.assert_close((filters * windows).sum(dim=2), expected, rtol=0, atol=1e-13)
    some = layer.ghost_filters(layer.attention_maps(x), [7, 0])
    assert torch.equal(some, filters[:, [7, 0]])
    two_heads = layer.attention_maps(x)[:, :2]
    assert torch.equal(layer.ghost_filters(two_heads, range(8)), filters[:, :8])
