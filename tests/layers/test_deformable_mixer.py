"""DeMT's deformable mixer: the official layer's numbers, loops, and bad input."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from demt_golden import load_arrays, mixer_part

from mmlocal.layers import DeformableMixer


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_golden(mode):
    """Values, gradients, and running statistics of the official layer."""
    golden, _ = load_arrays("demt_defmixer")
    layer = DeformableMixer(golden["input"].shape[1]).train(mode == "train")
    missing, unexpected = layer.load_state_dict(mixer_part(golden, "param."), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = golden["input"].requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out, golden[f"{mode}.output"], rtol=1e-4, atol=1e-5)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    grads = torch.autograd.grad(out, (x, *parameters), golden["grad_output"])
    expected = mixer_part(golden, f"{mode}.grad.") | {"x": golden[f"{mode}.grad_input"]}
    assert set(expected) == {"x", *names}
    for name, grad in zip(("x", *names), grads, strict=True):
        torch.testing.assert_close(grad, expected[name], rtol=1e-3, atol=1e-4, msg=name)
    if mode == "train":
        state = layer.state_dict()
        for name, after in mixer_part(golden, "train.after.").items():
            torch.testing.assert_close(state[name], after, rtol=1e-4, atol=1e-5)


def make(channels: int = 4, **kwargs) -> DeformableMixer:
    """A layer with offsets of about a pixel, and statistics that are not trivial."""
    torch.manual_seed(0)
    layer = DeformableMixer(channels, **kwargs)
    for block in layer.blocks:
        with torch.no_grad():
            block.deform.positions.weight.normal_(std=0.3)
            block.deform.offsets.weight.mul_(0.3)
            for norm in (block.norm1, block.norm2):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 2)
                norm.bias.normal_()
    return layer.eval()


def sampled(x: torch.Tensor, y: float, z: float) -> torch.Tensor:
    """Interpolate ``(H, W)`` at row ``y`` and column ``z``."""
    top, left = int(np.floor(y)), int(np.floor(z))
    total = torch.zeros((), dtype=x.dtype)
    for row, col in itertools.product((top, top + 1), (left, left + 1)):
        if 0 <= row < x.shape[0] and 0 <= col < x.shape[1]:
            total += (1 - abs(y - row)) * (1 - abs(z - col)) * x[row, col]
    return total


def written_out(block, x: torch.Tensor, residual_first: bool) -> torch.Tensor:
    """One block for ``(C, H, W)``, one pixel and channel after the other."""
    channels, height, width = x.shape

    def pointwise(x):
        y = F.gelu(torch.einsum("oi,ihw->ohw", block.conv.weight[..., 0, 0], x)
                   + block.conv.bias[:, None, None])  # fmt: skip
        return block.norm1(y[None])[0]

    def residual(x):
        positions = block.deform.positions(x[None])[0]
        for k, row, col in itertools.product(range(9), range(height), range(width)):
            positions[k, row, col] += row + 1 + k // 3 - 1
            positions[9 + k, row, col] += col + 1 + k % 3 - 1
        offsets = block.deform.offsets(positions[None])[0]
        moved = torch.zeros_like(x)
        for c, row, col in itertools.product(range(channels), range(height), range(width)):
            dy, dx = offsets[2 * c, row, col], offsets[2 * c + 1, row, col]
            moved[c, row, col] = sampled(x[c], row + float(dy), col + float(dx))
        return x + block.norm2(F.gelu(block.deform.conv(moved[None])))[0]

    return pointwise(residual(x)) if residual_first else residual(pointwise(x))


@pytest.mark.parametrize("residual_first", [False, True])
@pytest.mark.parametrize("size", [(5, 6), (1, 1), (1, 7)], ids=str)
def test_equation(size, residual_first):
    layer = make(depth=2, residual_first=residual_first).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = []
        for sample in x:
            for block in layer.blocks:
                sample = written_out(block, sample, residual_first)
            expected.append(sample)
        torch.testing.assert_close(layer(x), torch.stack(expected), rtol=0, atol=1e-11)


def test_new_layer_ignores_content_in_its_offsets():
    """The first convolution of the offsets starts with a weight of 0."""
    layer = DeformableMixer(4)
    assert (layer.blocks[0].deform.positions.weight == 0).all()
    assert len(layer.blocks) == 1
    assert DeformableMixer().embed_dims == 256


def test_channels_last_and_gradients():
    layer = make()
    x = torch.randn(2, 4, 6, 7)
    out = layer(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, layer(x), rtol=1e-5, atol=1e-5)
    layer.double()
    tiny = torch.randn(1, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, tiny)


def test_autocast():
    """Positions of a wide map stay exact: bfloat16 has steps of one pixel from 128 on."""
    layer = make()
    x = torch.randn(1, 4, 3, 300)
    exact = layer.blocks[0].deform(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer.blocks[0].deform(x)
    assert out.dtype == torch.bfloat16
    assert (out - exact).abs().max() / exact.abs().max() < 1e-2
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.blocks[0].deform.parameters())


def test_compile_and_export():
    layer = make()
    x = torch.randn(2, 4, 5, 7)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    dims = ({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},)
    program = torch.export.export(layer, (x,), dynamic_shapes=dims)
    other = torch.randn(3, 4, 8, 6)
    torch.testing.assert_close(program.module()(other), layer(other))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"channels": 5}, ValueError, "embed_dims must be even, .* got 5"),
        ({"channels": 0}, ValueError, "embed_dims must be at least 1, got 0"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": 1.0}, TypeError, "depth must be an integer, got 1.0"),
        ({"residual_first": 1}, TypeError, "residual_first must be True or False, got 1"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make(**kwargs)


def test_bad_input():
    with pytest.raises(ValueError, match=r"x must be \(B, embed_dims=4, H, W\), got"):
        make()(torch.zeros(1, 5, 2, 2))
    with pytest.raises(TypeError, match="x must be a tensor, got int"):
        make()(3)
    with pytest.raises(ValueError, match="more than one value per channel in training"):
        make().train()(torch.zeros(1, 4, 1, 1))
