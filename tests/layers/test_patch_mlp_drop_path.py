from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from mmlocal.layers import (
    MLP,
    DropPath,
    LayerNorm,
    PatchEmbed,
    PatchMerging,
    TransformerBlock,
    lecun_normal_,
)
from mmlocal.layers.gelu import GELU


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 12), (9, 4)], ids=str)
def test_patch_embed_pads_at_the_bottom_and_right(size):
    torch.manual_seed(0)
    layer = PatchEmbed(3, 8, patch_size=4)
    x = torch.randn(2, 3, *size)
    out = layer(x)
    height, width = -(-size[0] // 4), -(-size[1] // 4)
    assert out.shape == (2, height, width, 8)
    padded = F.pad(x, (0, 4 * width - size[1], 0, 4 * height - size[0]))
    y, x_ = height - 1, width - 1
    corner = padded[:, :, 4 * y : 4 * y + 4, 4 * x_ : 4 * x_ + 4].flatten(1)
    expected = F.layer_norm(corner @ layer.proj.weight.flatten(1).T + layer.proj.bias, (8,))
    torch.testing.assert_close(out[:, y, x_], expected, rtol=0, atol=1e-5)


def test_patch_embed_without_norm():
    layer = PatchEmbed(1, 6, patch_size=2, norm=False)
    assert {name for name, _ in layer.named_parameters()} == {"proj.weight", "proj.bias"}
    bare = PatchEmbed(1, 6, patch_size=2, norm=False, bias=False)
    bare.load_state_dict({"proj.weight": layer.proj.weight})
    x = torch.randn(2, 1, 4, 6)
    torch.testing.assert_close(bare(x) + layer.proj.bias, layer(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 8, 8), ValueError, r"x must be an image batch .* got \(3, 8, 8\)"),
        (torch.zeros(1, 4, 8, 8), ValueError, r"in_channels=3.* got \(1, 4, 8, 8\)"),
        (torch.zeros(1, 3, 3, 8), ValueError, "x must be at least one patch of 4x4 .* got 3x8"),
        (torch.zeros(1, 3, 8, 3), ValueError, "x must be at least one patch of 4x4 .* got 8x3"),
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            TypeError,
            "x must be floating point, got torch.uint8",
        ),
    ],
    ids=["3-D", "channels", "low", "narrow", "uint8"],
)
def test_patch_embed_refuses(x, error, message):
    with pytest.raises(error, match=message):
        PatchEmbed(3, 8, patch_size=4)(x)


@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_mlp_without_gradients_is_the_same(gelu):
    torch.manual_seed(0)
    mlp = MLP(6, 24, gelu=gelu)
    x = torch.randn(2, 3, 5, 6)
    before = x.clone()
    expected = mlp(x)
    with torch.no_grad():
        out = mlp(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-7)
    assert torch.equal(x, before)


@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("drop_rate", [0.0, 0.5])
def test_mlp_takes_large_maps_in_parts_without_gradients(gelu, drop_rate):
    torch.manual_seed(0)
    mlp = MLP(8, 1024, drop_rate, gelu).eval()
    tokens = 3 * torch.get_num_threads() * 256  # 1 MiB of hidden channels each
    seen = []
    mlp.fc1.register_forward_hook(lambda module, args, out: seen.append(out.numel() * 4))
    x = torch.randn(2, tokens // 8, 4, 8).transpose(1, 2)
    with torch.no_grad():
        out = mlp(x)
        assert len(seen) == 3
        small = mlp(x[:, :-1])
    assert len(seen) == 4
    with torch.enable_grad():
        expected = mlp(x)
    assert seen[-1] == tokens * 4096
    assert out.shape == x.shape
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(small, expected[:, :-1], rtol=0, atol=1e-6)
    mlp.train()
    with torch.no_grad():
        assert (mlp(x) == 0).float().mean() == pytest.approx(drop_rate, abs=0.02)
    # With dropout, checkpointing repeats the random numbers of a whole map.
    assert seen[-1] == tokens * 4096 // (1 if drop_rate else 3)


def test_gelu_by_a_sigmoid():
    x = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([1e-30, 1e20, -1e20, torch.inf])])
    exact = F.gelu(x.double(), approximate="tanh").float()
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        out = GELU("tanh")(x)
    assert "aten::sigmoid_" in {event.name for event in calls.events()}
    torch.testing.assert_close(out, exact, rtol=1e-6, atol=1e-6)
    assert GELU("tanh")(torch.tensor(torch.nan)).isnan()
    leaf = x[:-3].requires_grad_()
    found, expected = (
        torch.autograd.grad(layer("tanh")(leaf).sum(), leaf)[0] for layer in (GELU, nn.GELU)
    )
    assert torch.equal(found, expected)
    # On some CPUs, the exact GELU of infinity is NaN.
    torch.testing.assert_close(GELU()(x), F.gelu(x), rtol=0, atol=0, equal_nan=True)
    half = x[:-3].detach().bfloat16()
    assert torch.equal(GELU("tanh")(half), F.gelu(half, approximate="tanh"))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (5, 7), (4, 6)], ids=str)
def test_patch_merging_order_and_padding(size):
    torch.manual_seed(0)
    layer = PatchMerging(3, 5)
    layer.norm.weight.data.normal_()
    layer.norm.bias.data.normal_()
    x = torch.randn(2, *size, 3)
    height, width = -(-size[0] // 2), -(-size[1] // 2)
    padded = torch.zeros(2, 2 * height, 2 * width, 3)
    padded[:, : size[0], : size[1]] = x
    out = layer(x)
    assert out.shape == (2, height, width, 5)
    for i in range(height):
        for j in range(width):
            corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
            four = torch.cat([padded[:, 2 * i + a, 2 * j + b] for a, b in corners], dim=-1)
            expected = layer.norm(four) @ layer.reduction.weight.T
            torch.testing.assert_close(out[:, i, j], expected, rtol=0, atol=1e-6)


def test_mlp():
    torch.manual_seed(0)
    layer = MLP(6, 10)
    x = torch.randn(2, 3, 4, 6)
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))  # the exact GELU
    expected = hidden @ layer.fc2.weight.T + layer.fc2.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
    dropping = MLP(6, 10, drop_rate=0.5)
    assert 0.2 < (dropping(x) == 0).double().mean() < 0.8
    assert (dropping.eval()(x) != 0).all()


def test_mlp_with_the_gelu_of_jax():
    torch.manual_seed(0)
    layer = MLP(6, 10, gelu="tanh")
    x = 3 * torch.randn(2, 3, 4, 6)
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    inner = (2 / torch.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)
    expected = layer.fc2(0.5 * hidden * (1 + inner.tanh()))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
    exact = MLP(6, 10)
    exact.load_state_dict(layer.state_dict())
    assert (exact(x) - expected).abs().max() > 1e-5


class Halve(nn.Linear):
    """An attention that halves the map."""

    def forward(self, x):
        return super().forward(x[:, ::2, ::2])


def block(attn: nn.Module, **kwargs) -> TransformerBlock:
    torch.manual_seed(1)
    layer = TransformerBlock(6, attn, **kwargs)
    for name, parameter in layer.named_parameters():
        if "norm" in name or "gamma" in name:
            nn.init.normal_(parameter)
    return layer.double()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "layer-scale"])
@pytest.mark.parametrize("down", [False, True], ids=["same", "down"])
def test_block(down, scaled):
    """Both norms come before their branch, and each branch is added to its input."""
    wide = partial(LayerNorm, eps=0.1)
    kwargs = dict(norm1=wide, norm2=wide, mlp_ratio=2.5)
    if down:
        kwargs |= dict(skip=Halve(6, 10), out_dims=10)
    if scaled:
        kwargs |= dict(layer_scale_init_value=1e-4)
    dims = 10 if down else 6
    layer = block(Halve(6, 10) if down else nn.Linear(6, 6), **kwargs)
    assert layer.mlp.fc1.out_features == int(2.5 * dims)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)

    def norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        scale = (x.var(-1, correction=0, keepdim=True) + 0.1).rsqrt()
        return (x - x.mean(-1, keepdim=True)) * scale * module.weight + module.bias

    gamma1, gamma2 = (layer.gamma1, layer.gamma2) if scaled else (1, 1)
    y = (layer.skip(x) if down else x) + gamma1 * layer.attn(norm(layer.norm1, x))
    y = y + gamma2 * layer.mlp(norm(layer.norm2, y))
    assert y.shape == ((2, 2, 3, 10) if down else x.shape)
    torch.testing.assert_close(layer(x), y, rtol=0, atol=1e-12)


def test_norms_of_a_block():
    """Each norm may have any kind, or be left out."""
    plain = block(nn.Linear(6, 6), norm1=nn.Identity, norm2=nn.Identity)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    y = x + plain.attn(x)
    torch.testing.assert_close(plain(x), y + plain.mlp(y), rtol=0, atol=1e-12)
    mixed = block(nn.Linear(6, 6), norm1=nn.RMSNorm)
    assert (type(mixed.norm1), type(mixed.norm2)) == (nn.RMSNorm, LayerNorm)


def test_initial_layer_scale():
    layer = TransformerBlock(6, nn.Identity(), layer_scale_init_value=1e-4)
    assert (layer.gamma1 == 1e-4).all()
    assert (layer.gamma2 == 1e-4).all()
    assert TransformerBlock(6, nn.Identity()).gamma1 is None


def test_what_a_block_drops():
    """A block drops both branches per sample, but never an attention that changes the shape."""
    x = torch.randn(200, 2, 2, 6, dtype=torch.float64)
    layer = block(nn.Linear(6, 6), drop_path_rate=0.5)
    layer.mlp.fc2.weight.data.zero_()
    layer.mlp.fc2.bias.data.zero_()
    branch = layer(x) - x
    dropped = (branch == 0).flatten(1).all(1)
    assert 60 < dropped.sum() < 140
    torch.testing.assert_close(
        branch[~dropped], 2 * layer.attn(layer.norm1(x))[~dropped], rtol=0, atol=1e-12
    )
    down = block(Halve(6, 10), skip=Halve(6, 10), out_dims=10, drop_path_rate=0.5)
    mixed = down.skip(x) + down.attn(down.norm1(x))
    branch = down(x) - mixed
    dropped = (branch.abs() < 1e-12).flatten(1).all(1)
    assert 60 < dropped.sum() < 140
    torch.testing.assert_close(
        branch[~dropped], 2 * down.mlp(down.norm2(mixed))[~dropped], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (40, 10, 5, 5)], ids=str)
def test_lecun_normal(shape):
    """Weights of linear layers and convolutions have variance 1 / fan-in, cut at two deviations."""
    torch.manual_seed(0)
    weight = torch.empty(shape)
    assert lecun_normal_(weight) is weight
    expected = weight[0].numel() ** -0.5
    assert weight.std().item() == pytest.approx(expected, rel=0.03)
    assert abs(weight.mean().item()) < 0.05 * expected
    assert 2.1 * expected < weight.abs().max() < 2.28 * expected


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_drop_path_statistics(rate):
    torch.manual_seed(0)
    layer = DropPath(rate)
    out = layer(torch.ones(20000, 2, 1, 3))
    per_sample = out.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    values = per_sample[:, 0].unique()
    torch.testing.assert_close(values, torch.tensor([0, 1 / (1 - rate)]))
    dropped = (per_sample[:, 0] == 0).double().mean().item()
    assert abs(dropped - rate) < 0.02
    assert abs(out.mean().item() - 1) < 0.1


def test_drop_path_is_off_in_eval_mode_and_at_zero():
    x = torch.randn(4, 3)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0)(x) is x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_drop_path_keeps_the_dtype(dtype):
    x = torch.randn(8, 3).to(dtype).requires_grad_()
    out = DropPath(0.5)(x)
    assert out.dtype == dtype
    out.sum().backward()
    assert torch.equal(x.grad, (out / x).nan_to_num().round().detach())


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_drop_path_refuses(rate):
    with pytest.raises(ValueError, match=rf"drop_prob must be in \[0, 1\), got {rate}"):
        DropPath(rate)
