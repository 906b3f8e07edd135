"""The unified local attention against its equation, written out, and against other layers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from unified_written_out import neighborhoods, windows

from mmlocal.layers import (
    MIXERS,
    HasLocalAttention,
    UnifiedLocalAttention,
    WindowAttention,
    build_mixer,
)
from mmlocal.layers.unified_presets import PRESETS
from mmlocal.layers.unified_regions import from_keys_to_queries
from mmlocal.layers.unified_weights import NORMS, TERMS
from mmlocal.ops import elsa_attention


def make(preset: str = "net7", embed_dims: int = 8, num_heads: int = 2, **kwargs):
    """Build a layer in float64 with a region of 3 x 3 and with tables that matter."""
    torch.manual_seed(0)
    region = kwargs.get("region") or PRESETS[preset].region
    kwargs.setdefault("window_size" if region == "window" else "kernel_size", 3)
    layer = UnifiedLocalAttention(embed_dims, num_heads, preset, **kwargs).double()
    for name, parameter in layer.named_parameters():
        if "relative_position" in name or "ghost" in name:
            parameter.data.normal_()
    return layer


def check(layer: UnifiedLocalAttention, x: torch.Tensor, atol: float = 1e-11) -> None:
    """Compare the output and all gradients with the equation."""
    expect = windows if "Window" in type(layer.attend).__name__ else neighborhoods
    inputs = [x.requires_grad_(), *layer.parameters()]
    results = []
    for function in (layer, lambda x: expect(layer, x)):
        out = function(x)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=atol)


@pytest.mark.parametrize("lam_gamma", [(0, 0), (0, 0.5), (2, 0), (1, 0.5)], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset, lam_gamma):
    lam, gamma = lam_gamma
    layer = make(preset, lam=lam, gamma=gamma, shift=True)
    check(layer, torch.randn(2, 4, 5, 8, dtype=torch.float64))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("region", ["window", "neighborhood"])
def test_all_sums_of_terms(region, norm):
    x = torch.randn(1, 4, 3, 8, dtype=torch.float64)
    for count in range(1, 5):
        for terms in itertools.combinations(TERMS, count):
            layer = make(terms=terms, norm=norm, region=region)
            check(layer, x)
            # only the tables and projections in use are there
            columns = dict(key="qr", query="rk", bias="rb")
            for name, term in columns.items():
                table = getattr(layer.attend, f"relative_position_{name}_table")
                assert (table is not None) == (term in terms)
            parts = 1 + bool({"qk", "qr"} & set(terms)) + bool({"qk", "rk"} & set(terms))
            assert layer.qkv.out_features == 8 * parts


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 3), (6, 3)], ids=str)
@pytest.mark.parametrize("shift", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("norm", NORMS)
def test_windows_of_any_map(size, shift, norm):
    layer = make(norm=norm, shift=shift, gamma=1)
    # a filter of few different scores divides by a small number
    check(layer, torch.randn(1, *size, 8, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 2), (7, 8)], ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("dilation", [1, 2])
def test_neighborhoods_of_any_map(size, kernel_size, dilation):
    layer = make("net7-n", kernel_size=kernel_size, dilation=dilation)
    check(layer, torch.randn(2, *size, 8, dtype=torch.float64))


@pytest.mark.parametrize("num_heads", [1, 4, 8])
@pytest.mark.parametrize("preset", ["net7", "net7-n", "net3-n"])
def test_heads(preset, num_heads):
    check(make(preset, num_heads=num_heads), torch.randn(1, 4, 3, 8, dtype=torch.float64))


@pytest.mark.parametrize("qk_scale", [0.0, 0.7])
@pytest.mark.parametrize("preset", ["net7", "net7-n", "hadamard-n"])
def test_scale(preset, qk_scale):
    assert make(preset).attend.qk_scale == 4**-0.5
    layer = make(preset, qk_scale=qk_scale)
    assert layer.attend.qk_scale == qk_scale
    check(layer, torch.randn(1, 4, 3, 8, dtype=torch.float64))


@pytest.mark.parametrize("lam", [0, 1, 1.5])
@pytest.mark.parametrize("ratio", [1, 2, 4, None])
@pytest.mark.parametrize("preset", ["lsa", "lsa-n", "net1-n"])
def test_ghost_heads_of_each_width(preset, ratio, lam):
    layer = make(preset, lam=lam, gamma=0.7, ghost_ratio=ratio, shift=True)
    if lam == 1.5:
        layer.attend.ghost_head.mul.data.abs_()
    check(layer, torch.randn(1, 4, 5, 8, dtype=torch.float64))
    default = 2 if preset == "lsa" else 4
    assert layer.attend.ghost_head.add.shape[0] == 2 * (ratio or default)


# ------------------------------------------------------------------------ equal to other layers


@pytest.mark.parametrize("fit_window", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 9)], ids=str)
def test_lsa_is_window_attention(size, shift, fit_window):
    settings = dict(window_size=4, shift=shift, fit_window=fit_window)
    layer = make("lsa", 12, 3, **settings)
    swin = WindowAttention(12, 3, **settings).double()
    state = {name.replace("attend.", ""): value for name, value in layer.state_dict().items()}
    swin.w_msa.load_state_dict(state)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), swin(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
def test_dwconv_is_depthwise_convolution(dilation):
    layer = make("dwconv", dilation=dilation, kernel_size=5)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    value = (x @ layer.qkv.weight.T + layer.qkv.bias).permute(0, 3, 1, 2)
    weight = layer.attend.relative_position_bias_table.T.reshape(8, 1, 5, 5)
    out = F.conv2d(value, weight, padding=2 * dilation, dilation=dilation, groups=8)
    expected = layer.proj(out.permute(0, 2, 3, 1))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)
    assert layer.num_heads == 8


def hadamard_inputs(heads: int = 2, size: int = 3):
    torch.manual_seed(0)
    layer = make("hadamard-n", qk_scale=1.0, kernel_size=size, num_heads=heads)
    layer.proj = torch.nn.Identity()
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    q, k, v = layer.qkv(x).permute(0, 3, 1, 2).chunk(3, dim=1)
    tables = [
        getattr(layer.attend, f"relative_position_{name}_table")
        for name in ("key", "query", "bias")
    ]
    return layer, x, q * k, v, tables


def hadamard_unfolded(product, value, tables, heads, size):
    """Eq. 7 with the products of all neighbours unfolded."""
    key, query, bias = tables
    batch, dims, height, width = product.shape
    shape = (batch, heads, dims // heads, size**2, height, width)
    around = F.unfold(product, size, padding=size // 2).view(shape)
    values = F.unfold(value, size, padding=size // 2).view(shape)
    here = product.view(batch, heads, -1, height, width)
    r_k, r_q = (table.view(size**2, heads, -1) for table in (key, query))
    scores = torch.einsum("bndhw,tnd->bnthw", here, r_k)
    scores = scores + torch.einsum("bndthw,tnd->bnthw", around, r_q)
    scores = scores + bias.T[None, :, :, None, None]
    return torch.einsum("bnthw,bndthw->bndhw", scores.softmax(2), values).flatten(1, 2)


def hadamard_convolved(product, value, tables, heads, size):
    """Eq. 7 with one ``k x k`` convolution: the first term is in the middle of its kernels."""
    key, query, bias = tables
    dims = product.shape[1] // heads
    weight = torch.zeros(heads, size**2, dims, size**2, dtype=product.dtype)
    r_k, r_q = (table.view(size**2, heads, dims).permute(1, 0, 2) for table in (key, query))
    weight[:, :, :, size**2 // 2] = r_k
    weight = weight + torch.einsum("ntd,tu->ntdu", r_q, torch.eye(size**2, dtype=r_q.dtype))
    weight = weight.view(heads * size**2, dims, size, size)
    scores = F.conv2d(product, weight, bias.T.flatten(), padding=size // 2, groups=heads)
    return elsa_attention(value, scores, kernel_size=size)


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("size", [3, 5])
def test_three_algorithms_of_hadamard_attention(heads, size):
    """The layer, the unfolded form and one convolution are the same function."""
    layer, x, product, value, tables = hadamard_inputs(heads, size)
    outs = [
        layer(x).permute(0, 3, 1, 2),
        hadamard_unfolded(product, value, tables, heads, size),
        hadamard_convolved(product, value, tables, heads, size),
    ]
    grads = [
        torch.autograd.grad(out.square().sum(), [x, *tables], retain_graph=True) for out in outs
    ]
    for out, grad in zip(outs[1:], grads[1:], strict=True):
        torch.testing.assert_close(out, outs[0], rtol=0, atol=1e-12)
        for ours, expected in zip(grad, grads[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_scores_move_from_keys_to_queries(kernel_size, dilation):
    height, width = 4, 3
    reach = kernel_size // 2 * dilation
    shape = (2, 3 * kernel_size**2, height + 2 * reach, width + 2 * reach)
    scores = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    moved = from_keys_to_queries(scores, kernel_size, dilation)
    assert moved.shape == (*shape[:2], height, width)
    for channel in range(shape[1]):
        i, j = divmod(channel % kernel_size**2, kernel_size)
        top, left = i * dilation, j * dilation
        expected = scores[:, channel, top : top + height, left : left + width]
        assert torch.equal(moved[:, channel], expected)


# -------------------------------------------------------------------------------- as a module


@pytest.mark.parametrize("preset", PRESETS)
def test_no_image(preset):
    x = torch.zeros(0, 4, 3, 12)
    assert UnifiedLocalAttention(12, 3, preset)(x).shape == x.shape


@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_learns(preset):
    torch.manual_seed(0)
    layer = UnifiedLocalAttention(12, 3, preset, lam=0.5, gamma=1, ghost_ratio=1)
    layer(torch.randn(2, 9, 10, 12)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("preset", ["net7-n", "net3-n", "net1-n", "hadamard-n"])
def test_attention_maps(preset):
    """The op weights the values by the maps."""
    layer = make(preset, attn_drop_rate=0.5, dilation=2).eval()
    layer.proj = torch.nn.Identity()
    assert isinstance(layer, HasLocalAttention)
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64)
    maps = layer.attention_maps(x)
    assert maps.shape == (2, 2, 9, 5, 6)
    value = layer.qkv(x)[..., -8:].permute(0, 3, 1, 2)
    settings = dict(kernel_size=3, dilation=2, softmax=False)
    out = elsa_attention(value, maps.flatten(1, 2), **settings).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), out, rtol=0, atol=1e-13)


def test_windows_offer_no_local_attention():
    layer = make("net7")
    assert not isinstance(layer, HasLocalAttention)
    with pytest.raises(ValueError, match="needs region='neighborhood', got 'window'"):
        layer.attention_maps(torch.randn(1, 4, 4, 8, dtype=torch.float64))


@pytest.mark.parametrize("preset", ["net7", "net7-n", "net3-n", "dwconv"])
def test_attention_dropout(preset):
    """Its mean over many draws is the output without dropout; in eval mode it does nothing."""
    layer = make(preset, attn_drop_rate=0.3, lam=1)
    x = torch.randn(1, 4, 5, 8, dtype=torch.float64)
    exact = layer.eval()(x)
    assert torch.equal(layer(x), exact)
    layer.train()
    with torch.no_grad():
        draws = torch.cat([layer(x.expand(200, -1, -1, -1)) for _ in range(10)])
    assert draws.std(dim=0).max() > 0.01
    standard_error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - exact[0]).abs() < 5 * standard_error + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("preset", ["net7", "net7-n", "net3-n", "hadamard-n", "dwconv"])
def test_half_precision(preset, dtype):
    """Converted layers and autocast are as exact as their dtype."""
    torch.manual_seed(0)
    layer = UnifiedLocalAttention(16, 2, preset, gamma=1, shift=True)
    x = torch.randn(2, 9, 8, 16)
    exact = layer(x)
    atol = (0.02 if dtype == torch.bfloat16 else 0.003) * exact.abs().max().item()
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(layer(x).float(), exact, rtol=0, atol=atol)
    out = layer.to(dtype)(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=2 * atol)
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("preset", ["net7", "net3-n", "dwconv"])
def test_compile_and_export(preset):
    layer = make(preset, lam=1, gamma=1, shift=True)
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    expected = layer(x)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-13)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-13)


def test_compile_for_any_size():
    layer = make("net7-n")
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((5, 7), (8, 6)):
        x = torch.randn(2, *size, 8, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_backends(backend):
    x = torch.randn(2, 5, 7, 8, dtype=torch.float64)
    out = make("net7-n", gamma=1)(x)
    torch.testing.assert_close(make("net7-n", gamma=1, backend=backend)(x), out, rtol=0, atol=1e-13)


def test_from_a_config():
    assert MIXERS["UnifiedLocalAttention"] is UnifiedLocalAttention
    cfg = dict(type="UnifiedLocalAttention", preset="lsa", norm="filter", window_size=4)
    plain, shifted = (build_mixer(cfg, 12, 3, index) for index in range(2))
    assert (plain.shift, shifted.shift) == (False, True)
    assert plain.attend.terms == ("qk", "rb")
    assert plain.attend.norm == "filter"
    layer = build_mixer(dict(type="UnifiedLocalAttention", preset="net6-n"), 12, 3, 1)
    assert (layer.kernel_size, layer.padding, layer.num_heads) == (7, 3, 3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (dict(preset="net8"), ValueError, "preset must be one of lsa, net1, .*, got 'net8'"),
        (dict(terms=()), ValueError, r"terms must be some of qk, qr, rk, rb, got \(\)"),
        (dict(terms=("qk", "kk")), ValueError, "terms must be some of .*'kk'"),
        (dict(terms="qk"), TypeError, "terms must be a sequence of names, got 'qk'"),
        (dict(norm="sum"), ValueError, "norm must be one of softmax, filter, identity, got 'sum'"),
        (dict(region="map"), ValueError, "region must be one of window, neighborhood, got 'map'"),
        (dict(num_heads=5), ValueError, "num_heads must divide embed_dims=12, got num_heads=5"),
        (dict(preset="net7-n", kernel_size=4), ValueError, "kernel_size must be .* odd .*, got 4"),
        (dict(kernel_size=3), ValueError, "kernel_size=3 and dilation=1; set window_size"),
        (dict(dilation=2), ValueError, "kernel_size=None and dilation=2; set window_size"),
        (dict(preset="net7-n", window_size=3), ValueError, "window_size=3; set kernel_size"),
        (dict(norm="filter", window_size=1), ValueError, "'filter' needs at least 2 taps"),
        (dict(preset="net3-n", kernel_size=1), ValueError, "'filter' needs at least 2 taps"),
        (dict(hadamard=True), ValueError, "hadamard needs the terms 'qr' or 'rk', and cannot"),
        (dict(terms=["rb"], hadamard=True), ValueError, r"got terms=\['rb'\]"),
        (dict(lam=1, ghost_ratio=3), ValueError, "must divide the 4 channels of a head, got 3"),
        (dict(lam=1, ghost_ratio=0), ValueError, "ghost_ratio must be at least 1, got 0"),
        (dict(gamma=float("nan")), ValueError, "gamma must be finite, got nan"),
        (dict(shift=1), TypeError, "shift must be True or False, got 1"),
    ],
    ids=str,
)
def test_bad_arguments(settings, error, message):
    with pytest.raises(error, match=message):
        UnifiedLocalAttention(12, **dict(num_heads=3) | settings)


def test_bad_input():
    layer = make("net3", fit_window=True)
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=8\)"):
        layer(torch.randn(1, 4, 4, 9, dtype=torch.float64))
    with pytest.raises(ValueError, match="filter normalisation needs at least 2 taps"):
        layer(torch.randn(1, 1, 4, 8, dtype=torch.float64))
