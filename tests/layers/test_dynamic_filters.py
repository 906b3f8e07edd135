"""Mixers whose filters depend on the input: Involution, DDF, and their projections."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlocal.layers import DDF, MIXERS, Involution, ProjectedMixer, register_mixer

SIZES = pytest.mark.parametrize("size", [(1, 1), (2, 5), (6, 7)], ids=str)


def filtered(x: Tensor, filters: Tensor, size: int, dilation: int) -> Tensor:
    """Weight all windows of ``x (B, C, H, W)`` by ``filters (B, C, taps, H, W)``."""
    pad = size // 2 * dilation
    windows = F.unfold(x, size, dilation, pad).view(*x.shape[:2], size**2, *x.shape[2:])
    return (windows * filters).sum(dim=2).permute(0, 2, 3, 1)


def involution_written_out(layer: Involution, x: Tensor) -> Tensor:
    x = x.permute(0, 3, 1, 2)
    filters = layer.predictor(x).unflatten(1, (layer.num_heads, 1, -1))
    filters = filters.expand(-1, -1, x.shape[1] // layer.num_heads, -1, -1, -1).flatten(1, 2)
    return filtered(x, filters, layer.kernel_size, layer.dilation)


def normalized(filters: Tensor, dim: int) -> Tensor:
    deviation = filters - filters.mean(dim, keepdim=True)
    variance = deviation.square().sum(dim, keepdim=True) / (filters.shape[dim] - 1)
    return deviation / variance.sqrt()


def ddf_written_out(layer: DDF, x: Tensor) -> Tensor:
    size = layer.kernel_size
    channel = layer.channel(x.mean(dim=(1, 2))).view(len(x), -1, size**2)
    channel = normalized(channel, 2) * layer.channel_scale
    x = x.permute(0, 3, 1, 2)
    spatial = normalized(layer.spatial(x), 1) * (math.sqrt(2) / size)
    filters = channel[..., None, None] * spatial[:, None]
    return filtered(x, filters, size, layer.dilation)


WRITTEN_OUT = {Involution: involution_written_out, DDF: ddf_written_out}
operators = pytest.mark.parametrize("kind", WRITTEN_OUT, ids=lambda kind: kind.__name__)


def make(kind: type[nn.Module], **kwargs) -> nn.Module:
    torch.manual_seed(1)
    return kind(12, 3, **kwargs)


@operators
@SIZES
@pytest.mark.parametrize("kwargs", [{"kernel_size": 3}, {"kernel_size": 5, "dilation": 2}], ids=str)
def test_values_and_gradients(kind, size, kwargs):
    layer = make(kind, **kwargs).double()
    x = torch.randn(2, *size, 12, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn_like(x)
    results = []
    for call in (layer, lambda x: WRITTEN_OUT[kind](layer, x)):
        out = call(x)
        inputs = (x, *layer.parameters())
        results.append((out, *torch.autograd.grad(out, inputs, cotangent)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@operators
def test_batch_of_one(kind):
    layer = make(kind).double().eval()
    x = torch.randn(3, 5, 4, 12, dtype=torch.float64)
    alone = torch.cat([layer(image[None]) for image in x])
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=1e-12)


@operators
def test_compile_and_export(kind):
    layer = make(kind).eval()
    x = torch.randn(2, 6, 5, 12)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5)
    small = x[:1, :4]
    torch.testing.assert_close(compiled(small), layer(small), rtol=0, atol=1e-5)
    program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=0, atol=1e-5)


@operators
def test_autocast(kind):
    layer = make(kind)
    x = torch.randn(2, 6, 7, 12)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert (out - exact).abs().max() / exact.abs().max() < 0.1
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in layer.parameters())


def test_groups_of_the_paper():
    layer = Involution(64, 3, group_channels=16)
    assert layer.num_heads == 4
    assert layer.predictor.reduce.weight.shape == (16, 64, 1, 1)
    assert layer.predictor.expand.weight.shape == (4 * 49, 16, 1, 1)
    with pytest.raises(ValueError, match="reduction must be at most embed_dims=2, got reduction=4"):
        Involution(2, 1)


def test_parameters_of_the_official_ddf():
    """The layers of the official code, counted by hand, for 64 channels and 3x3 taps."""
    spatial = 64 * 9 + 9
    channel = 64 * 12 + 12 + 12 * 64 * 9 + 64 * 9 + 64 * 9
    assert sum(p.numel() for p in DDF(64, 1, 3).parameters()) == spatial + channel


def test_first_scales_of_ddf():
    torch.manual_seed(0)
    layer = DDF(256, 1, 7)
    assert layer.spatial_scale == pytest.approx(2**0.5 / 7)
    assert layer.channel_scale.std().item() == pytest.approx(2**0.5 / 7, rel=0.03)
    assert layer.channel_scale.mean().abs() < 0.01


def test_equal_taps_give_no_nan():
    """A network without a gradient at such a filter would break in its first step."""
    layer = DDF(12, 3, 3)
    for part in (layer.spatial, layer.channel[2]):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    out = layer(torch.randn(1, 4, 4, 12))
    assert not out.any()
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_projections():
    layer = make(ProjectedMixer, mixer=dict(type="DDF", kernel_size=3)).eval()
    assert isinstance(layer.mixer, DDF)
    x = torch.randn(2, 4, 5, 12)
    torch.testing.assert_close(layer(x), layer.proj(layer.mixer(layer.value(x))), rtol=0, atol=0)
    assert layer.value.bias is not None
    assert make(ProjectedMixer, bias=False).proj.bias is None
    assert ProjectedMixer(12, 4).mixer.num_heads == 4


def test_a_projected_mixer_shifts(monkeypatch):
    monkeypatch.setattr("mmlocal.layers.mixers.MIXERS", dict(MIXERS))

    @register_mixer
    class Shifting(nn.Identity):
        def __init__(self, embed_dims, num_heads, shift=False):
            super().__init__()
            self.shift = shift

    cfg = dict(type="Shifting")
    assert ProjectedMixer(12, 3, cfg, shift=True).mixer.shift
    assert not ProjectedMixer(12, 3, cfg).mixer.shift


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        (Involution, {"kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        (Involution, {"num_heads": 5}, "num_heads must divide embed_dims=12, got num_heads=5"),
        (Involution, {"num_heads": 0}, "num_heads must be at least 1, got 0"),
        (Involution, {"reduction": 0}, "reduction must be at least 1, got 0"),
        (Involution, {"dilation": 0}, "dilation must be at least 1, got 0"),
        (Involution, {"group_channels": 16}, "group_channels must divide embed_dims=12, got 16"),
        (DDF, {"kernel_size": 4}, "kernel_size must be a positive odd number, got 4"),
        (DDF, {"kernel_size": 1}, "kernel_size must be at least 3, because one tap"),
        (DDF, {"se_ratio": 0}, "se_ratio must be positive, got 0"),
        (DDF, {"se_ratio": math.inf}, "se_ratio must be finite, got inf"),
        (DDF, {"dilation": 0}, "dilation must be at least 1, got 0"),
        (ProjectedMixer, {"mixer": {"type": "DDf"}}, "unknown mixer 'DDf': did you mean DDF"),
    ],
    ids=str,
)
def test_bad_arguments(kind, kwargs, message):
    with pytest.raises(ValueError, match=message):
        kind(**(dict(embed_dims=12, num_heads=3) | kwargs))


@pytest.mark.parametrize("kind", [Involution, DDF, ProjectedMixer])
def test_bad_input(kind):
    with pytest.raises(ValueError, match=r"x must be \(B, H, W, embed_dims=12\), got"):
        make(kind)(torch.zeros(1, 12, 4, 5))
