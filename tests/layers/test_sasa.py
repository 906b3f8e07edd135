"""Stand-alone self-attention against its equation by unfold."""

import pytest
import torch
import torch.nn.functional as F

from mmlocal.layers import SASA, HasLocalAttention
from mmlocal.ops.neighborhood import BACKENDS

SIZES = [(1, 1), (1, 5), (3, 2), (5, 5), (6, 9)]
NAMES = [b.name for b in BACKENDS if not b.not_supported_reasons(torch.empty(0))]
borders = pytest.mark.parametrize("border", ["mask", "zero"])


def make(embed_dims=12, num_heads=3, kernel_size=5, **kwargs) -> SASA:
    """A layer in float64 whose position embeddings matter."""
    torch.manual_seed(0)
    layer = SASA(embed_dims, num_heads, kernel_size, **kwargs).double()
    if layer.rel_pos is not None:
        layer.rel_pos.data.normal_()
    return layer


def by_unfold(layer: SASA, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and attention maps of the equation in the docstring, with all windows written out."""
    batch, height, width, dims = x.shape
    heads, k = layer.num_heads, layer.kernel_size
    settings = dict(kernel_size=k, dilation=layer.dilation, padding=layer.padding)

    def windows(part):
        part = F.unfold(part.permute(0, 3, 1, 2), **settings)
        return part.view(batch, heads, dims // heads, k * k, height * width)

    q, keys, v = layer.qkv(x).chunk(3, dim=3)
    keys, values = windows(keys), windows(v)
    q = q.permute(0, 3, 1, 2).reshape(batch, heads, dims // heads, 1, height * width)
    if layer.rel_pos is not None:
        rows, columns = layer.rel_pos  # (k, half of the head's channels)
        offsets = [(i, j) for i in range(k) for j in range(k)]
        table = torch.stack([torch.cat((rows[i], columns[j])) for i, j in offsets], dim=1)
        keys = keys + table[..., None]
    logits = layer.qk_scale * (q * keys).sum(dim=2)
    inside = F.unfold(torch.ones(1, 1, height, width, dtype=x.dtype), **settings) > 0
    if layer.border == "mask":
        logits = logits.masked_fill(~inside, -torch.inf)
    maps = logits.softmax(dim=2)
    out = (maps.unsqueeze(2) * values).sum(dim=3).view(batch, dims, height, width)
    return layer.proj(out.permute(0, 2, 3, 1)), maps.unflatten(3, (height, width))


@borders
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kwargs", [{}, {"rel_pos": False}, {"dilation": 2}], ids=str)
def test_equation(kwargs, size, border):
    """Values, maps and all gradients."""
    layer = make(border=border, **kwargs)
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    out, (expected, maps) = layer(x), by_unfold(layer, x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(layer.attention_maps(x), maps, rtol=0, atol=1e-13)
    cotangent = torch.randn_like(out)
    ours = torch.autograd.grad(out, leaves, cotangent)
    for a, b in zip(ours, torch.autograd.grad(expected, leaves, cotangent), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_settings_reach_the_equation():
    layer = make(border="zero", qk_scale=0.3, qkv_bias=False, kernel_size=(3, 3))
    assert layer.qkv.bias is None
    x = torch.randn(1, 4, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), by_unfold(layer, x)[0], rtol=0, atol=1e-13)


@borders
def test_border(border):
    """With equal tokens, the maps are even over the window, or over its part in the map."""
    layer = make(border=border, rel_pos=False, qkv_bias=False, kernel_size=3)
    layer.qkv.weight.data[:12] = 0  # no queries
    maps = layer.attention_maps(torch.ones(1, 4, 5, 12, dtype=torch.float64))
    corner = maps[0, 0, :, 0, 0].view(3, 3)
    share = 1 / 4 if border == "mask" else 1 / 9
    torch.testing.assert_close(corner[1:, 1:], torch.full_like(corner[1:, 1:], share))
    assert (corner[0] == (0 if border == "mask" else share)).all()
    torch.testing.assert_close(maps.sum(dim=2), torch.ones_like(maps[:, :, 0]))


def test_it_can_be_drawn():
    layer = make(dilation=2)
    assert isinstance(layer, HasLocalAttention)
    assert (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == (5, 1, 4, 2)


def test_parameters():
    """The embeddings of the paper are two tables of half a head's channels."""
    layer = SASA(96, 3, 7)
    count = sum(p.numel() for p in layer.parameters())
    assert count == 4 * 96**2 + 4 * 96 + 2 * 7 * 16
    assert layer.border == "mask"
    assert abs(SASA(256, 1, 31).rel_pos.std().item() - 0.02) < 0.002


def test_attention_dropout():
    """Its mean over many draws is the output without dropout; in eval mode it does nothing."""
    layer = make(attn_drop_rate=0.3, kernel_size=3)
    x = torch.randn(1, 4, 5, 12, dtype=torch.float64)
    exact = layer.eval()(x)
    assert torch.equal(layer(x), exact)
    layer.train()
    with torch.no_grad():
        draws = layer(x.expand(2000, -1, -1, -1))
    assert draws.std(dim=0).max() > 0.01
    standard_error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - exact[0]).abs() < 5 * standard_error + 1e-9).all()


def test_projection_dropout():
    layer = make(proj_drop_rate=0.5)
    x = torch.randn(1, 8, 8, 12, dtype=torch.float64)
    assert 0.3 < (layer(x) == 0).double().mean() < 0.7
    assert (layer.eval()(x) != 0).all()


@pytest.mark.parametrize("backend", NAMES)
def test_backend_is_passed_on(backend):
    x = torch.randn(1, 4, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(make(backend=backend)(x), make()(x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'no'"):
        make(backend="no")(x)


@borders
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, border):
    layer = make(border=border).to(dtype)
    x = torch.randn(1, 6, 7, 12).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    exact = layer.double()(x.double())
    error = (out.double() - exact).abs().max() / exact.abs().max()
    assert error < {torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


@borders
def test_autocast(border):
    layer = make(border=border).float()
    x = torch.randn(2, 6, 7, 12)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() / exact.abs().max() < 5e-2
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_compile():
    torch.compiler.reset()
    layer = make()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in [(6, 7), (9, 4)]:
        x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
        out = layer(x)
        torch.testing.assert_close(compiled(x), out, rtol=0, atol=1e-12)
        ours, expected = (
            torch.autograd.grad(f(x).square().sum(), [x, *layer.parameters()])
            for f in (compiled, layer)
        )
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_export():
    layer = make().eval()
    x = torch.randn(2, 6, 7, 12, dtype=torch.float64)
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    program = torch.export.export(layer, (x,), dynamic_shapes={"x": {1: height, 2: width}})
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert [t for t in targets if "mmlocal" in t] == [
        "mmlocal.neighborhood_scores.default", "mmlocal.elsa_attention.default",
    ]  # fmt: skip
    for size in [(6, 7), (9, 4)]:
        x = torch.randn(2, *size, 12, dtype=torch.float64)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size must be a positive odd number, got 4"),
        ({"kernel_size": (3, 5)}, ValueError, r"kernel_size must be one number .* got \(3, 5\)"),
        ({"num_heads": 5}, ValueError, "num_heads must divide embed_dims=12, got num_heads=5"),
        ({"num_heads": 4}, ValueError, "rel_pos=True needs an even .*, got 3 .*set rel_pos=False"),
        ({"dilation": 0}, ValueError, "dilation must be at least 1, got 0"),
        ({"border": "wrap"}, ValueError, "border must be one of mask, zero, got 'wrap'"),
        ({"qk_scale": float("inf")}, ValueError, "qk_scale must be finite, got inf"),
        ({"attn_drop_rate": 1.5}, ValueError, r"attn_drop_rate must be in \[0, 1\], got 1.5"),
        ({"rel_pos": 1}, TypeError, "rel_pos must be True or False, got 1"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
        make()(torch.zeros(1, 12, 4, 5))
