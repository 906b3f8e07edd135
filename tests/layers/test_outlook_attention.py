"""VOLO's outlook attention: the official layer's numbers, written-out windows, and bad input."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlocal.layers import HasLocalAttention, OutlookAttention
from mmlocal.ops.outlook import BACKENDS, outlook_attention

GOLDEN = Path(__file__).parents[1] / "data" / "volo" / "volo_outlook_attention.npz"
# Those that take CPU tensors here.
NAMES = [b.name for b in BACKENDS if not b.not_supported_reasons(torch.empty(0))]


def make(**kwargs) -> OutlookAttention:
    torch.manual_seed(0)
    return OutlookAttention(**dict(embed_dims=12, num_heads=3) | kwargs)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("backend", NAMES)
def test_golden(backend, mode):
    """Values and all gradients of the official layer. Without dropout, both modes are the same."""
    with np.load(GOLDEN) as arrays:
        golden = {k: torch.from_numpy(v) for k, v in arrays.items() if k != "meta"}
        meta = json.loads(str(arrays["meta"]))
    layer = OutlookAttention(
        meta["dim"],
        meta["num_heads"],
        meta["kernel_size"],
        meta["stride"],
        meta["padding"],
        meta["qkv_bias"],
        backend=backend,
    ).train(mode == "train")
    layer.load_state_dict(
        {k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")}
    )
    x = golden["input"].requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out, golden["eval.output"], rtol=1e-4, atol=1e-5)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    grads = torch.autograd.grad(out, (x, *parameters), golden["grad_output"])
    for name, grad in zip(("grad_input", *(f"grad.{n}" for n in names)), grads, strict=True):
        expected = golden[f"eval.{name}"]
        assert (grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def written_out(layer: OutlookAttention, x: torch.Tensor) -> torch.Tensor:
    """The equations for ``(H, W, C)``, one window after the other."""
    heads, k, stride, padding = layer.num_heads, layer.kernel_size, layer.stride, layer.padding
    height, width, channels = x.shape
    value = layer.v(x).view(height, width, heads, -1)
    out = torch.zeros_like(value)
    for row, col in itertools.product(range(0, height, stride), range(0, width, stride)):
        block = x[row : row + stride, col : col + stride].mean(dim=(0, 1))
        maps = (layer.attn(block) * layer.qk_scale).view(heads, k * k, k * k).softmax(dim=2)
        pixels = [
            (tap, row + tap // k - padding, col + tap % k - padding)
            for tap in range(k * k)
            if 0 <= row + tap // k - padding < height and 0 <= col + tap % k - padding < width
        ]
        for (t, y, z), (s, b, a) in itertools.product(pixels, pixels):
            out[y, z] += maps[:, t, s, None] * value[b, a]
    return layer.proj(out.reshape(height, width, channels))


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(stride=1, qkv_bias=True),
        dict(kernel_size=(5, 5), padding=2, num_heads=1, qk_scale=0.3),
        dict(stride=4, num_heads=12),  # pixels in no window
        dict(kernel_size=1, padding=0, stride=2),
    ],
    ids=str,
)
def test_equation(kwargs):
    layer = make(**kwargs).double()
    x = torch.randn(2, 7, 6, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([written_out(layer, sample) for sample in x])
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


def test_attention_maps():
    """The maps sum to 1, and the op mixes the values by them."""
    layer = make(attn_drop_rate=0.5).double().eval()
    assert isinstance(layer, HasLocalAttention)
    layer.proj = nn.Identity()
    x = torch.randn(2, 5, 8, 12, dtype=torch.float64)
    maps = layer.attention_maps(x)
    assert maps.shape == (2, 9, 3, 9, 3, 4)
    assert (maps > 0).all()
    torch.testing.assert_close(maps.sum(dim=3), torch.ones(2, 9, 3, 3, 4, dtype=torch.float64))
    weights = maps.transpose(1, 2).flatten(1, 3)
    value = layer.v(x).permute(0, 3, 1, 2)
    out = outlook_attention(value, weights, num_heads=3, softmax=False)
    torch.testing.assert_close(out.permute(0, 2, 3, 1), layer(x), rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
        layer.attention_maps(torch.zeros(1, 12, 4, 5))


def test_attention_dropout():
    """Its mean over many draws is the map without dropout; in eval mode it does nothing."""
    layer = make(attn_drop_rate=0.3).double()
    x = torch.randn(1, 4, 5, 12, dtype=torch.float64)
    exact = layer.eval()(x)
    assert torch.equal(layer(x), make().double()(x))
    layer.train()
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.cat([layer(x.expand(200, -1, -1, -1)) for _ in range(10)])
    assert draws.std(dim=0).max() > 0.01
    standard_error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - exact[0]).abs() < 5 * standard_error + 1e-9).all()
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_projection_dropout():
    layer = make(proj_drop_rate=0.5)
    x = torch.randn(1, 8, 8, 12)
    assert 0.3 < (layer(x) == 0).double().mean() < 0.7
    assert (layer.eval()(x) != 0).all()


@pytest.mark.parametrize("backend", NAMES)
def test_backend_is_passed_on(backend):
    x = torch.randn(1, 4, 5, 12)
    torch.testing.assert_close(make(backend=backend)(x), make()(x), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'no'"):
        make(backend="no")(x)


def test_compile_and_export():
    layer = make()
    for size in ((7, 9), (6, 8)):
        x = torch.randn(2, *size, 12)
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
        program = torch.export.export(layer, (x,))
        targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        assert [t for t in targets if "mmlocal" in t] == ["mmlocal.outlook_attention.default"]
        torch.testing.assert_close(program.module()(x), layer(x))


def test_autocast():
    layer = make()
    x = torch.randn(2, 6, 7, 12)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() / exact.abs().max() < 3e-2
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_blocks_at_the_border_average_their_own_pixels():
    """A map of odd size is not padded with zeros before the pooling."""
    layer = make()
    x = torch.randn(1, 5, 7, 12)
    blocks = F.avg_pool2d(
        F.pad(x.permute(0, 3, 1, 2), (0, 1, 0, 1), mode="replicate"), 2
    )  # the last pixel twice
    expected = layer.attn(blocks.permute(0, 2, 3, 1)) * 4**-0.5
    maps = expected.unflatten(3, (3, 9, 9)).softmax(dim=5).permute(0, 4, 3, 5, 1, 2)
    torch.testing.assert_close(layer.attention_maps(x), maps)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size must be a positive odd number, got 4"),
        ({"num_heads": 5}, ValueError, "num_heads must divide embed_dims=12, got num_heads=5"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"stride": 0}, ValueError, "stride must be at least 1, got 0"),
        ({"stride": 1.5}, TypeError, "stride must be an integer, got 1.5"),
        ({"padding": 0}, ValueError, "padding must be kernel_size // 2 = 1, .* got 0"),
        ({"kernel_size": 5}, ValueError, "padding must be kernel_size // 2 = 2, .* got 1"),
        ({"qkv_bias": 1}, TypeError, "qkv_bias must be True or False, got 1"),
        ({"qk_scale": float("nan")}, ValueError, "qk_scale must be finite, got nan"),
        ({"attn_drop_rate": 2}, ValueError, r"attn_drop_rate must be in \[0, 1\], got 2"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got \(4, 5, 12\)"):
        make()(torch.zeros(4, 5, 12))
