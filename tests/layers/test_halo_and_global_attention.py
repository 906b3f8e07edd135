import pytest
import torch
from torch import Tensor, nn

from mmlocal.layers import GlobalAttention, HaloAttention, WindowMSA
from mmlocal.layers.window_msa import window_partition, window_reverse

KINDS = pytest.mark.parametrize("kind", [HaloAttention, GlobalAttention])


def make(kind: type[nn.Module], **kwargs) -> nn.Module:
    torch.manual_seed(0)
    layer = kind(12, 3, **kwargs).double()
    for name, parameter in layer.named_parameters():
        if "rel_pos" in name:
            parameter.data.normal_()
    return layer


def written_out(layer: nn.Module, x: Tensor) -> Tensor:
    """Compute both docstrings' equations for one map, one pair of positions after another."""
    height, width, dims = x.shape
    weights, biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
    q, k, v = (x @ w.T + b for w, b in zip(weights, biases, strict=True))
    scale = (dims // layer.num_heads) ** -0.5 if layer.qk_scale is None else layer.qk_scale
    rows = []
    for y in range(height):
        for x_ in range(width):
            keys = [(i, j) for i in range(height) for j in range(width)]
            if isinstance(layer, HaloAttention):
                size, halo = layer.block_size, layer.halo_size
                first = (y // size * size - halo, x_ // size * size - halo)
                keys = [s for s in keys if all(0 <= s[i] - first[i] < size + 2 * halo
                                               for i in (0, 1))]  # fmt: skip
            heads = []
            for head in range(layer.num_heads):
                part = slice(head * dims // layer.num_heads, (head + 1) * dims // layer.num_heads)
                logits = []
                for s in keys:
                    key = k[s][part]
                    if isinstance(layer, HaloAttention):
                        middle = layer.block_size + layer.halo_size - 1
                        key = key + layer.rel_pos_rows[s[0] - y + middle]
                        key = key + layer.rel_pos_columns[s[1] - x_ + middle]
                    logits.append(scale * q[y, x_, part] @ key)
                attn = torch.stack(logits).softmax(dim=0)
                heads.append(sum(a * v[s][part] for a, s in zip(attn, keys, strict=True)))
            rows.append(torch.cat(heads))
    out = torch.stack(rows).view(height, width, dims)
    return out @ layer.proj.weight.T + layer.proj.bias


def check(layer: nn.Module, size: tuple[int, int]) -> None:
    x = torch.randn(*size, 12, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    results = []
    for call in (lambda x: layer(x[None])[0], lambda x: written_out(layer, x)):
        out = call(x)
        inputs = (x, *layer.parameters())
        results.append((out, *torch.autograd.grad(out, inputs, cotangent)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (3, 3), (4, 7)], ids=str)
@pytest.mark.parametrize(("block", "halo"), [(3, 1), (2, 3), (8, 3), (1, 1)])
def test_halo(size, block, halo):
    check(make(HaloAttention, block_size=block, halo_size=halo), size)


@pytest.mark.parametrize("size", [(1, 1), (2, 5)], ids=str)
@pytest.mark.parametrize("qk_scale", [None, 0.3])
def test_global(size, qk_scale):
    check(make(GlobalAttention, qk_scale=qk_scale), size)


def test_scale_of_halo_attention():
    check(make(HaloAttention, block_size=2, halo_size=1, qk_scale=0.3), (3, 4))


def test_without_halo_it_is_window_attention():
    """Without position embeddings, a block is a window."""
    layer = make(HaloAttention, block_size=4, halo_size=0)
    layer.rel_pos_rows.data.zero_()
    layer.rel_pos_columns.data.zero_()
    windows = WindowMSA(12, 3, 4).double()
    windows.load_state_dict(layer.state_dict(), strict=False)
    windows.relative_position_bias_table.data.zero_()
    x = torch.randn(2, 8, 4, 12, dtype=torch.float64)
    expected = window_reverse(windows(window_partition(x, (4, 4))), (4, 4), 8, 4)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_a_halo_over_the_whole_map_is_global_attention():
    layer = make(HaloAttention, block_size=2, halo_size=5)
    layer.rel_pos_rows.data.zero_()
    layer.rel_pos_columns.data.zero_()
    everything = GlobalAttention(12, 3).double()
    everything.load_state_dict(layer.state_dict(), strict=False)
    x = torch.randn(2, 6, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x), everything(x), rtol=0, atol=1e-12)


@KINDS
def test_compile_and_export(kind):
    layer = make(kind).float().eval()
    x = torch.randn(2, 11, 9, 12)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-5)


@KINDS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, dtype):
    layer = make(kind).to(dtype)
    x = torch.randn(1, 9, 10, 12).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    exact = layer.double()(x.double())
    error = (out.double() - exact).abs().max() / exact.abs().max()
    assert error < {torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]


@KINDS
def test_dropout(kind):
    x = torch.randn(1, 6, 6, 12, dtype=torch.float64)
    layer = make(kind, attn_drop_rate=0.5)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), make(kind)(x))
    assert 0.3 < (make(kind, proj_drop_rate=0.5)(x) == 0).double().mean() < 0.7


@KINDS
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 5}, "num_heads must divide embed_dims=12, got num_heads=5"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"attn_drop_rate": 2.0}, r"attn_drop_rate must be in \[0, 1\], got 2.0"),
        ({"qk_scale": float("nan")}, "qk_scale must be finite, got nan"),
    ],
    ids=str,
)
def test_bad_arguments(kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        kind(**(dict(embed_dims=12, num_heads=3) | kwargs))


def test_bad_arguments_of_halo_attention():
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        make(HaloAttention, block_size=0)
    with pytest.raises(ValueError, match="halo_size must be at least 0, got -1"):
        make(HaloAttention, halo_size=-1)
    with pytest.raises(TypeError, match=r"halo_size must be an integer, got 1\.5"):
        make(HaloAttention, halo_size=1.5)


@KINDS
def test_bad_input(kind):
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
        make(kind)(torch.zeros(1, 12, 4, 5))
