"""The QnA layers; their agreement with the official code is in tests/models/test_qna_parity.py."""

import itertools

import pytest
import torch
from torch import nn

from mmlocal.layers import QnA, UpsampleQnA
from mmlocal.layers.learned_queries import ATTN_SCALES
from mmlocal.ops.qna import BACKENDS

# Those that take CPU tensors here.
NAMES = [b.name for b in BACKENDS if not b.not_supported_reasons(torch.empty(0))]
both = pytest.mark.parametrize("kind", [QnA, UpsampleQnA])


def randomise(layer: nn.Module) -> nn.Module:
    """Randomise the tables, which start at 0, 1 or nearly 0 and would hide mistakes."""
    for name, parameter in layer.named_parameters():
        if "table" in name or "embed" in name or name.endswith("bias"):
            nn.init.normal_(parameter)
    return layer.double()


def make(kind=QnA, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return randomise(kind(**dict(embed_dims=12, num_heads=3, kernel_size=3) | kwargs))


def tokens(*size: int) -> torch.Tensor:
    return torch.randn(*size, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def written_out(layer: QnA, x: torch.Tensor) -> torch.Tensor:
    """Compute the paper's equations for ``(H, W, C)``, window by window, with keys."""
    heads, queries, k = layer.num_heads, layer.num_queries, layer.kernel_size
    height, width = x.shape[:2]
    rows, cols = ((n + 2 * layer.padding - k) // layer.stride + 1 for n in (height, width))
    query = layer.query.view(queries, heads, -1)
    dims = query.shape[2]
    if layer.normalize_query:
        query = query / (query.pow(2).sum(2, keepdim=True).sqrt() + 1e-6)
    key = (x @ layer.key.weight.t()).view(height, width, heads, -1)
    value = layer.value(x).view(height, width, heads, -1)
    out = x.new_zeros(rows, cols, heads, dims)
    for row, col, head, q in itertools.product(*map(range, (rows, cols, heads, queries))):
        logits, values, weights = [], [], []
        for i, j in itertools.product(range(k), range(k)):
            y, z = row * layer.stride + i - layer.padding, col * layer.stride + j - layer.padding
            if 0 <= y < height and 0 <= z < width:
                tap, table = i * k + j, q * heads + head
                bias = layer.rel_pos_table[tap, table]
                if layer.scale_pos_embed:
                    bias = bias / dims**0.5
                logits.append(query[q, head] @ key[y, z, head] / dims**0.5 + bias)
                values.append(value[y, z, head])
                weights.append(layer.attn_scale_table[tap, table])
        attn = torch.stack(logits).softmax(0) * torch.stack(weights)
        out[row, col, head] += attn @ torch.stack(values)
    return layer.proj(out.flatten(2))


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(stride=2, attn_dims=24, qkv_bias=True),
        dict(kernel_size=2, padding=0, num_queries=3, out_dims=5),
        dict(kernel_size=5, num_queries=1, normalize_query=False, scale_pos_embed=True),
        dict(kernel_size=4, padding=3, stride=3, num_heads=1),
    ],
    ids=str,
)
def test_equation(kwargs):
    layer = make(**kwargs)
    x = tokens(2, 5, 4)
    with torch.no_grad():
        expected = torch.stack([written_out(layer, sample) for sample in x])
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_keys_are_never_computed():
    """The queries are multiplied into the projection of the keys, so tokens have scores alone."""
    layer, outputs = make(), []
    layer.key.register_forward_hook(lambda module, args, output: outputs.append(output))
    layer(tokens(1, 4, 5))
    assert [out.shape for out in outputs] == [(1, 4, 5, 2 * 3)]


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel_size", [1, 3, 7])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 3), (7, 8)], ids=str)
def test_any_map(size, kernel_size, stride):
    """An odd window with its default padding makes ``ceil(H / stride)`` tokens."""
    layer = make(kernel_size=kernel_size, stride=stride, out_dims=7)
    x = tokens(2, *size).requires_grad_()
    out = layer(x)
    assert out.shape == (2, -(-size[0] // stride), -(-size[1] // stride), 7)
    out.sum().backward()
    assert x.grad.isfinite().all()


def test_default_padding_of_even_windows():
    """The map shrinks by one, as in the official code."""
    assert make(kernel_size=4)(tokens(2, 7, 9)).shape == (2, 6, 8, 12)


@pytest.mark.parametrize("scale_factor", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 5)], ids=str)
def test_upsampling(size, scale_factor):
    """Query ``a * scale_factor + b`` alone fills sub-pixel ``(a, b)`` of each cell."""
    layer = make(UpsampleQnA, scale_factor=scale_factor, attn_dims=24, out_dims=5, qkv_bias=True)
    x = tokens(2, *size)
    out = layer(x)
    assert out.shape == (2, scale_factor * size[0], scale_factor * size[1], 5)
    one = make(num_queries=1, attn_scale="ones", attn_dims=24, out_dims=5, qkv_bias=True)
    nn.init.ones_(one.attn_scale_table)
    shared = {k: v for k, v in layer.state_dict().items() if k not in ("query", "rel_pos_table")}
    one.load_state_dict(shared, strict=False)
    tables = layer.rel_pos_table.unflatten(1, (scale_factor**2, 3))
    for a, b in itertools.product(range(scale_factor), range(scale_factor)):
        query = a * scale_factor + b
        one.query.data = layer.query.data[query : query + 1]
        one.rel_pos_table.data = tables.data[:, query]
        torch.testing.assert_close(
            out[:, a::scale_factor, b::scale_factor], one(x), rtol=0, atol=1e-13
        )


@both
def test_interior_is_shift_equivariant(kind):
    """Away from the border, moving the input moves the output; at the border, zeros differ."""
    layer = make(kind, kernel_size=5)
    factor = 2 if kind is UpsampleQnA else 1
    x = tokens(1, 14, 15)
    out, moved = layer(x), layer(x.roll((2, 3), (1, 2)))
    dy, dx, reach = 2 * factor, 3 * factor, 2 * factor
    a = out[:, reach:-reach, reach:-reach][:, :-dy, :-dx]
    b = moved[:, reach:-reach, reach:-reach][:, dy:, dx:]
    assert a.shape[1] >= 8 * factor
    torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert not torch.allclose(out[:, :-dy, :-dx], moved[:, dy:, dx:], atol=1e-3)


@pytest.mark.parametrize("size", [(6, 6), (7, 8)], ids=str)
def test_stride_2_is_every_second_window(size):
    plain, strided = make(), make(stride=2)
    strided.load_state_dict(plain.state_dict())
    x = tokens(2, *size)
    torch.testing.assert_close(strided(x), plain(x)[:, ::2, ::2], rtol=0, atol=1e-13)


@both
@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (6, 5)], ids=str)
def test_masked_padding_is_no_padding(size, kernel_size, kind):
    """Values and gradients of a map do not depend on masked tokens around it."""
    layer = make(kind, kernel_size=kernel_size, qkv_bias=True)
    factor = 2 if kind is UpsampleQnA else 1
    x = tokens(2, *size).requires_grad_()
    expected = layer(x)
    cotangent = torch.linspace(0, 9, expected.numel(), dtype=torch.float64).cos()
    cotangent = cotangent.view(expected.shape)
    named = dict(layer.named_parameters()) | {"x": x}
    grads = torch.autograd.grad(expected, list(named.values()), cotangent)

    rows, cols = slice(2, 2 + size[0]), slice(1, 1 + size[1])
    padded, mask = tokens(2, 10, 9), torch.ones(2, 10, 9, dtype=torch.bool)
    padded[:, rows, cols], mask[:, rows, cols] = x.detach(), False
    padded.requires_grad_()
    out = layer(padded, mask)
    out = out[:, 2 * factor : (2 + size[0]) * factor, factor : (1 + size[1]) * factor]
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-13)
    named["x"] = padded
    padded_grads = torch.autograd.grad(out, list(named.values()), cotangent)
    for name, ours, grad in zip(named, padded_grads, grads, strict=True):
        if name == "x":
            assert not ours[mask].any()
            ours = ours[:, rows, cols]
        torch.testing.assert_close(ours, grad, rtol=0, atol=1e-12)
    # a mask that masks nothing changes nothing
    assert torch.equal(layer(x, torch.zeros(2, *size, dtype=torch.bool)), expected)


@both
def test_windows_without_tokens(kind):
    """Only the bias of the output remains, and no gradient becomes NaN."""
    layer = make(kind, qkv_bias=True)
    factor = 2 if kind is UpsampleQnA else 1
    mask = torch.zeros(1, 6, 8, dtype=torch.bool)
    mask[:, :, :4] = True
    x = tokens(1, 6, 8).requires_grad_()
    out = layer(x, mask)
    assert (out[:, :, : 3 * factor] == layer.proj.bias).all()
    assert (out[:, :, 3 * factor :] != layer.proj.bias).all()
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert not x.grad[mask].any()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        *((QnA, dict(attn_scale=a)) for a in ATTN_SCALES),
        (UpsampleQnA, dict()),
    ],
    ids=lambda x: "-".join(x.values()) if isinstance(x, dict) else x.__name__,
)
def test_every_parameter_learns_from_the_start(kind, kwargs):
    torch.manual_seed(0)
    layer = kind(12, 3, qkv_bias=True, **kwargs)
    # not the plain sum, which some options make a constant
    layer(torch.randn(2, 6, 7, 12)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@both
def test_gradients(kind):
    layer = make(kind, embed_dims=4, num_heads=2, scale_pos_embed=True)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(layer, named, (x,))

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()))


@pytest.mark.parametrize("attn_scale", ATTN_SCALES)
def test_attention_scales(attn_scale):
    """Every kind equals the learned table with certain numbers in it."""
    layer, table = make(attn_scale=attn_scale), make(attn_scale="ones")
    table.load_state_dict(layer.state_dict() | {"attn_scale_table": table.attn_scale_table})
    weights = {
        "avg": torch.full((9, 6), 0.5),
        "none": torch.ones(9, 6),
        "posneg": torch.tensor([1.0, 1, 1, -1, -1, -1]).expand(9, 6),  # query-major
    }
    values = weights.get(attn_scale)
    values = layer.attn_scale_table if values is None else values
    table.attn_scale_table.data = values.detach().double().expand(9, 6)
    x = tokens(1, 5, 6)
    torch.testing.assert_close(layer(x), table(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("detached", [False, True])
def test_unit_queries(detached):
    """A query's length has no effect, and a gradient only if wanted. A query of 0 is allowed."""
    layer = make(detach_query_norm=detached)
    x = tokens(1, 5, 6)
    out = layer(x)
    out.square().sum().backward()
    query, grad = (q.view(6, 4) for q in (layer.query, layer.query.grad))
    cosine = torch.cosine_similarity(query, grad).abs().max()
    assert (cosine > 0.1) if detached else (cosine < 1e-4)
    layer.query.data *= 50
    torch.testing.assert_close(layer(x), out, rtol=0, atol=1e-5)
    layer.query.data.zero_()
    layer.zero_grad()
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    plain = make(normalize_query=False)
    assert not torch.allclose(plain(x), out.detach(), atol=1e-3)


def test_attention_maps():
    """The maps make the output, and leave out masked tokens."""
    layer = make(stride=2, padding=1, num_queries=3)
    x = tokens(2, 5, 6)
    mask = torch.arange(60).view(2, 5, 6) % 4 == 0
    maps = layer.attention_maps(x, mask)
    assert maps.shape == (2, 3, 3, 9, 3, 3)
    torch.testing.assert_close(maps.sum(3), torch.ones(2, 3, 3, 3, 3, dtype=torch.float64))
    value = layer.value(x).permute(0, 3, 1, 2)
    windows = nn.functional.unfold(value, 3, padding=1, stride=2).view(2, 3, 4, 9, 3, 3)
    scale = layer.attn_scale_table.t().view(3, 3, 9, 1, 1)
    out = torch.einsum("blntyx,bnctyx->byxnc", maps * scale, windows).flatten(3)
    torch.testing.assert_close(layer.proj(out), layer(x, mask), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="x must be"):
        layer.attention_maps(x[0])


def test_initialisation():
    """Weights start as Flax's LeCun normal, queries as truncated normals over the head's size."""
    torch.manual_seed(0)
    layer = QnA(256, 8, num_queries=64, attn_dims=512, qkv_bias=True)
    std = 64**-0.5
    assert layer.query.abs().max() <= 2 * std
    assert layer.query.std().item() == pytest.approx(0.88 * std, rel=0.02)
    for linear in (layer.key, layer.value, layer.proj):
        fan_in = linear.weight.shape[1]
        assert linear.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
    assert not layer.value.bias.any()
    assert not layer.proj.bias.any()
    assert {name for name, _ in layer.key.named_parameters()} == {"weight"}
    assert not layer.rel_pos_table.any()
    assert layer.attn_scale_table.std().item() == pytest.approx(0.02, rel=0.05)
    assert (QnA(12, 3, attn_scale="ones").attn_scale_table == 1).all()


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_parameter_count(kernel_size, queries):
    """Without a bias, the official layer has L F + 2 C F + F F_out + 2 T L h parameters."""
    layer = QnA(12, 3, kernel_size, queries, attn_dims=24, out_dims=5)
    expected = queries * 24 + 2 * 12 * 24 + 24 * 5 + 2 * kernel_size**2 * queries * 3
    assert sum(p.numel() for p in layer.parameters()) == expected


@both
@pytest.mark.parametrize("backend", NAMES)
def test_backend_is_passed_on(backend, kind):
    x = tokens(1, 4, 5)
    torch.testing.assert_close(make(kind, backend=backend)(x), make(kind)(x), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'no'"):
        make(kind, backend="no")(x)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype, kind):
    layer = make(kind).to(dtype)
    x = tokens(1, 6, 7).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    exact = layer.double()(x.double())
    error = (out.double() - exact).abs().max() / exact.abs().max()
    assert error < {torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


@both
def test_autocast(kind):
    layer = make(kind).float()
    x = tokens(2, 6, 7).float()
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x, torch.zeros(2, 6, 7, dtype=torch.bool))
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() / exact.abs().max() < 3e-2
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@both
def test_non_contiguous_input(kind):
    layer = make(kind)
    x = tokens(2, 5, 6)
    views = [
        x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        torch.stack((x, x), -1)[..., 0],
    ]
    for view in views:
        assert not view.is_contiguous()
        torch.testing.assert_close(layer(view), layer(x), rtol=0, atol=1e-13)


@both
def test_two_runs_are_bit_equal(kind):
    results = []
    for _ in range(2):
        layer = make(kind).float()
        x = tokens(2, 9, 8).float().requires_grad_()
        layer(x).square().sum().backward()
        results.append([x.grad, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@both
def test_compile(kind):
    """One graph for all sizes, forward and backward, with and without a mask."""
    torch.compiler.reset()
    layer = make(kind)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for masked in (False, True):
        for size in ((2, 5, 7), (3, 9, 6)):
            x = tokens(*size).requires_grad_()
            mask = torch.arange(x[..., 0].numel()).view(size) % 3 == 0 if masked else None
            expected, out = layer(x, mask), compiled(x, mask)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
            args = (x, *layer.parameters())
            grads = (torch.autograd.grad(y.square().sum(), args) for y in (out, expected))
            for ours, grad in zip(*grads, strict=True):
                torch.testing.assert_close(ours, grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        (QnA, dict(num_heads=5), r"num_heads must divide attn_dims=12 .* got num_heads=5"),
        (QnA, dict(num_heads=5, attn_dims=24), "num_heads must divide attn_dims=24 .* num_heads=5"),
        (QnA, dict(num_heads=0), "num_heads must be at least 1, got 0"),
        (QnA, dict(num_queries=0), "num_queries must be at least 1, got 0"),
        (QnA, dict(kernel_size=0), "kernel_size must be at least 1, got 0"),
        (QnA, dict(stride=0), "stride must be at least 1, got 0"),
        (QnA, dict(padding=3), "padding must be 0 to kernel_size - 1 = 2, got 3"),
        (QnA, dict(padding=-1), "padding must be 0 to kernel_size - 1 = 2, got -1"),
        (QnA, dict(attn_scale="max"), "attn_scale must be one of normal, .*, got 'max'"),
        (
            QnA,
            dict(attn_scale="posneg", num_queries=1),
            r"even num_queries \* num_heads, got 1 \* 3",
        ),
        (UpsampleQnA, dict(scale_factor=0), "scale_factor must be at least 1, got 0"),
        (UpsampleQnA, dict(kernel_size=4), "kernel_size must be a positive odd number, got 4"),
        (UpsampleQnA, dict(kernel_size=-1), "kernel_size must be a positive odd number, got -1"),
        (UpsampleQnA, dict(num_heads=5), "num_heads must divide attn_dims=12 .* got num_heads=5"),
    ],
    ids=lambda x: "-".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else None,
)
def test_bad_arguments(kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **kwargs)


@both
def test_bad_input(kind):
    layer = make(kind)
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got \(4, 5, 12\)"):
        layer(torch.zeros(4, 5, 12))
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
        layer(torch.zeros(1, 12, 4, 5))
    x = tokens(2, 4, 5)
    for mask in (torch.zeros(2, 4, 5), torch.zeros(4, 5, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"mask must be bool of shape .* = \(2, 4, 5\), got"):
            layer(x, mask)


def test_a_map_smaller_than_a_window():
    with pytest.raises(ValueError, match="at least one window of kernel_size=3 with padding=0"):
        make(padding=0)(tokens(1, 2, 5))
