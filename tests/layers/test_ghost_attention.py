import pytest
import torch
import torch.nn.functional as F

from mmlocal.layers import GhostAttention


def make(map_size=(3, 4), **kwargs) -> GhostAttention:
    torch.manual_seed(0)
    layer = GhostAttention(12, 3, map_size, **kwargs).double()
    for ghost in (layer.ghost_mul, layer.ghost_add):
        if ghost is not None:
            ghost.data.normal_()
    return layer


def written_out(layer: GhostAttention, x: torch.Tensor) -> torch.Tensor:
    """Compute the docstring's equation for one map, one pair of positions after another."""
    height, width, dims = x.shape
    q, k, v = (x @ w.T + b for w, b in zip(
        layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True
    ))  # fmt: skip
    positions = [(y, x) for y in range(height) for x in range(width)]
    groups = layer.num_heads * layer.ghost_ratio
    out = torch.zeros_like(x)
    for group in range(groups):
        head = group // layer.ghost_ratio
        qk_part = slice(head * dims // layer.num_heads, (head + 1) * dims // layer.num_heads)
        v_part = slice(group * dims // groups, (group + 1) * dims // groups)
        for p in positions:
            logits = torch.stack([q[p][qk_part] @ k[s][qk_part] for s in positions])
            attn = (logits * layer.qk_scale).softmax(dim=0)
            for s, weight in zip(positions, attn, strict=True):
                offset = (s[0] - p[0] + height - 1, s[1] - p[1] + width - 1)
                if layer.ghost_mul is not None:
                    weight = weight * layer.ghost_mul[group][offset] ** layer.lam
                if layer.ghost_add is not None:
                    weight = weight + layer.gamma * layer.ghost_add[group][offset]
                out[p][v_part] += weight * v[s][v_part]
    return out @ layer.proj.weight.T + layer.proj.bias


@pytest.mark.parametrize("ghost_ratio", [1, 2])
@pytest.mark.parametrize(("lam", "gamma"), [(1, 1), (2, 0.5), (0, 1), (1, 0), (0, 0)], ids=str)
def test_equation(lam, gamma, ghost_ratio):
    layer = make(lam=lam, gamma=gamma, ghost_ratio=ghost_ratio, qk_scale=0.7)
    assert (layer.ghost_mul is None) == (lam == 0)
    assert (layer.ghost_add is None) == (gamma == 0)
    x = torch.randn(3, 4, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x[None])[0], written_out(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(3, 4), (5, 2)], ids=str)
def test_without_ghost_it_is_attention(size):
    """The layer starts like this, except that ``ghost_add`` starts small instead of at 0."""
    layer = GhostAttention(12, 3, (3, 4)).double()
    assert 0 < layer.ghost_add.abs().max() <= 2
    assert layer.ghost_add.std() < 0.05
    layer.ghost_add.data.zero_()
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    q, k, v = (
        part.view(2, -1, 3, 4).transpose(1, 2) for part in layer.qkv(x).flatten(1, 2).chunk(3, -1)
    )
    plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, *size, 12)
    torch.testing.assert_close(layer(x), layer.proj(plain), rtol=0, atol=1e-12)


def test_doubles_the_heads():
    layer = GhostAttention(192, 3)
    assert layer.ghost_mul.shape == layer.ghost_add.shape == (6, 27, 27)


def test_other_map_sizes():
    """A constant matrix stays constant. The additive one keeps its share of the total."""
    layer = make(lam=1, gamma=1)
    layer.ghost_mul.data.fill_(1)
    layer.ghost_add.data.fill_(0.25)
    value, bias = layer.qkv.weight.data[24:], layer.qkv.bias.data[24:]
    for height, width in ((3, 4), (6, 8), (1, 1), (2, 7)):
        x = torch.randn(1, height, width, 12, dtype=torch.float64)
        plain = make(lam=0, gamma=0)(x)
        mean = (x @ value.T + bias).mean(dim=(1, 2), keepdim=True)
        added = mean * 0.25 * 3 * 4 @ layer.proj.weight.T
        torch.testing.assert_close(layer(x) - plain, added.expand_as(x), rtol=0, atol=1e-12)


def test_gradients():
    layer = make((2, 2), lam=2)
    x = torch.randn(1, 2, 3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    parameters = list(layer.parameters())
    for grad in torch.autograd.grad(layer(x).square().sum(), parameters):
        assert grad.isfinite().all()
        assert grad.any()


def test_dropout():
    layer = make(attn_drop_rate=0.5, gamma=0)
    x = torch.randn(1, 3, 4, 12, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_autocast():
    layer = make().float()
    x = torch.randn(1, 3, 4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out.float(), layer(x), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((12, 5), {}, "num_heads \\* ghost_ratio must divide embed_dims=12, got num_heads=5"),
        ((12, 4), dict(ghost_ratio=2), "got num_heads=4 and ghost_ratio=2"),
        ((12, 0), {}, "num_heads must be at least 1, got 0"),
        ((12, 3), dict(ghost_ratio=0), "ghost_ratio must be at least 1, got 0"),
        ((12, 3), dict(map_size=(0, 2)), r"map_size must be at least 1, got \(0, 2\)"),
    ],
)
def test_bad_arguments(args, kwargs, message):
    with pytest.raises(ValueError, match=message):
        GhostAttention(*args, **kwargs)


def test_bad_input():
    for shape in ((1, 12, 12), (1, 3, 4, 11)):
        with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
            make()(torch.zeros(shape, dtype=torch.float64))
