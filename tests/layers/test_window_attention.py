import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from mmlocal.layers import EvenWindowAttention, WindowAttention, WindowMSA
from mmlocal.layers.window_attention import shift_mask
from mmlocal.layers.window_msa import window_partition, window_reverse


def written_out(layer: WindowMSA, x: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """Compute Swin's equation in one window pair by pair. The table's index is query minus key."""
    heads, table = layer.num_heads, layer.relative_position_bias_table
    wh, ww = layer.window_size
    dims = x.shape[-1] // heads
    q, k, v = (x @ w.T + b for w, b in zip(
        layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True
    ))  # fmt: skip
    positions = [(y, x) for y in range(window[0]) for x in range(window[1])]
    out = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * dims, (head + 1) * dims)
        logits = q[:, part] @ k[:, part].T * (layer.qk_scale or dims**-0.5)
        for i, (qy, qx) in enumerate(positions):
            for j, (ky, kx) in enumerate(positions):
                row = (qy - ky + wh - 1) * (2 * ww - 1) + qx - kx + ww - 1
                logits[i, j] += table[row, head]
        out[:, part] = logits.softmax(dim=1) @ v[:, part]
    return out @ layer.proj.weight.T + layer.proj.bias


def make(window_size, **kwargs) -> WindowMSA:
    torch.manual_seed(0)
    layer = WindowMSA(12, 3, window_size, **kwargs).double()
    layer.relative_position_bias_table.data.normal_()
    return layer


@pytest.mark.parametrize("qk_scale", [None, 0.3])
@pytest.mark.parametrize(
    ("full", "window"),
    [((3, 4), (3, 4)), ((4, 4), (2, 3)), ((7, 7), (1, 1)), ((3, 5), (3, 2))],
    ids=str,
)
def test_one_window(full, window, qk_scale):
    layer = make(full, qk_scale=qk_scale)
    x = torch.randn(window[0] * window[1], 12, dtype=torch.float64)
    ours = layer(x[None], window)[0]
    torch.testing.assert_close(ours, written_out(layer, x, window), rtol=0, atol=1e-12)


def test_scale_of_zero_is_not_the_default():
    layer = make((2, 2), qk_scale=0.0)
    x = torch.randn(1, 4, 12, dtype=torch.float64)
    layer.relative_position_bias_table.data.zero_()
    q_and_k = layer.qkv.weight.data[:24]
    out = layer(x)
    q_and_k.mul_(3)
    torch.testing.assert_close(layer(x), out)


def test_partition_and_reverse():
    x = torch.arange(2 * 4 * 6 * 3).view(2, 4, 6, 3)
    windows = window_partition(x, (2, 3))
    assert windows.shape == (8, 6, 3)
    assert torch.equal(windows[1].view(2, 3, 3), x[0, :2, 3:])
    assert torch.equal(windows[6].view(2, 3, 3), x[1, 2:, :3])
    assert torch.equal(window_reverse(windows, (2, 3), 4, 6), x)


def _offsets(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[:, :, None] - tokens[:, None]


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (12, 8)], ids=str)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_shift_mask_separates_what_was_apart(size, step):
    """Two tokens of a shifted window meet if they lie in the map as they lie in the window."""
    height, width = size
    window = 4
    position = torch.stack(
        torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), dim=-1
    )
    rolled = position.roll((-step, -step), dims=(0, 1))[None]
    tokens = window_partition(rolled, (window, window))
    inside = window_partition(position[None], (window, window))[:1]
    together = (_offsets(tokens) == _offsets(inside)).all(dim=-1)
    mask = shift_mask(height, width, (window, window), (step, step))
    assert mask.shape == (height * width // window**2, window**2, window**2)
    assert torch.equal(mask == 0, together)
    assert torch.equal(mask == -100, ~together)


def shifted(window=4, shift=True, **kwargs) -> WindowAttention:
    torch.manual_seed(0)
    layer = WindowAttention(12, 3, window, shift, **kwargs).double()
    layer.w_msa.relative_position_bias_table.data.normal_()
    return layer


@pytest.mark.parametrize("shift", [False, True], ids=["plain", "shifted"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (5, 8), (9, 11)], ids=str)
def test_any_size_against_loops_over_windows(size, shift):
    """Each region of the padded map attends on its own, as in a loop over regions."""
    layer = shifted(shift=shift)
    height, width = size
    x = torch.randn(1, height, width, 12, dtype=torch.float64)
    out = layer(x)
    assert out.shape == x.shape
    assert out.is_contiguous()
    padded = F.pad(x, (0, 0, 0, -width % 4, 0, -height % 4))[0]
    expected = torch.zeros_like(padded)

    def cuts(side: int) -> list[tuple[int, int]]:
        edges = [0, *range(2 if shift else 4, side, 4), side]
        return list(itertools.pairwise(edges))

    for top, bottom in cuts(padded.shape[0]):
        for left, right in cuts(padded.shape[1]):
            region = padded[top:bottom, left:right]
            flat = written_out(layer.w_msa, region.reshape(-1, 12), region.shape[:2])
            expected[top:bottom, left:right] = flat.view(region.shape)
    # -100 instead of minus infinity between regions leaves nothing that float64 would show
    torch.testing.assert_close(out[0], expected[:height, :width], rtol=0, atol=1e-10)


def test_fit_window():
    plain, fitted = shifted(fit_window=False), shifted(fit_window=True)
    for size in [(5, 6), (9, 5)]:  # larger than the window: no difference
        x = torch.randn(2, *size, 12, dtype=torch.float64)
        assert torch.equal(plain(x), fitted(x))
    for size in [(4, 4), (3, 3), (1, 1)]:  # one window over the whole map, no shift, no padding
        x = torch.randn(1, *size, 12, dtype=torch.float64)
        expected = written_out(fitted.w_msa, x.view(-1, 12), size).view(x.shape)
        torch.testing.assert_close(fitted(x), expected, rtol=0, atol=1e-12)
        assert not torch.allclose(plain(x), fitted(x), atol=1e-3)
    x = torch.randn(1, 3, 7, 12, dtype=torch.float64)  # windows of the shorter side, padded
    out = fitted(x)
    for left, right in [(0, 3), (3, 6)]:
        part = x[:, :, left:right]
        expected = written_out(fitted.w_msa, part.reshape(-1, 12), (3, 3)).view(part.shape)
        torch.testing.assert_close(out[:, :, left:right], expected, rtol=0, atol=1e-12)


def test_batch_is_a_batch():
    layer = shifted()
    x = torch.randn(3, 5, 9, 12, dtype=torch.float64)
    alone = torch.cat([layer(sample[None]) for sample in x])
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=1e-13)


def test_gradients():
    layer = shifted(window=2)
    x = torch.randn(1, 3, 3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("qk_scale", [None, 0.0, 0.3])
def test_attention_with_and_without_gradients_of_the_bias(dtype, qk_scale):
    torch.manual_seed(0)
    layer = WindowMSA(12, 3, (3, 2), qk_scale=qk_scale)
    layer.relative_position_bias_table.data.normal_()
    layer.to(dtype)
    x = torch.randn(4, 6, 12, dtype=dtype, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as calls:
        out = layer(x)
    assert "aten::baddbmm" in {event.name for event in calls.events()}
    layer.relative_position_bias_table.requires_grad_(False)
    fused = layer(x)
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(out, fused, rtol=0, atol=tolerance)
    cotangent = torch.randn_like(out)
    (found,), (expected,) = (torch.autograd.grad(y, x, cotangent) for y in (out, fused))
    torch.testing.assert_close(found, expected, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("shift", [False, True], ids=["plain", "shifted"])
def test_attention_dropout(shift):
    layer = shifted(shift=shift, attn_drop_rate=0.5)
    x = torch.randn(1, 4, 4, 12, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_no_buffer_is_saved():
    assert "w_msa.relative_position_index" not in shifted().state_dict()
    assert set(dict(shifted().named_buffers())) == {"w_msa.relative_position_index"}


def even(window=4, **kwargs) -> EvenWindowAttention:
    torch.manual_seed(0)
    layer = EvenWindowAttention(12, 3, window, **kwargs).double()
    layer.w_msa.relative_position_bias_table.data.normal_()
    return layer


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (4, 12)], ids=str)
def test_even_windows_of_a_map_that_divides(size):
    """The layer equals plain window attention, with or without bias."""
    for kwargs in (dict(), dict(qkv_bias=False, proj_bias=False)):
        layer = even(**kwargs)
        x = torch.randn(2, *size, 12, dtype=torch.float64)
        windows = layer.w_msa(window_partition(x, (4, 4)))
        assert torch.equal(layer(x), window_reverse(windows, (4, 4), *size))
        assert layer.w_msa.qkv.bias is None or kwargs == {}
        assert layer.w_msa.proj.bias is None or kwargs == {}


@pytest.mark.parametrize(
    ("window", "height", "width"),
    [
        (4, [0, 1], [0, 1]),
        (4, [0, 3], [0, 2]),  # smaller than a window
        (4, [0, 3, 5], [0, 4]),
        (4, [0, 3, 6, 9], [0, 3, 6]),
        (4, [0, 4, 7], [0, 4, 8, 11]),  # one is short
        (4, [0, 4, 8, 10], [0, 3, 5]),
        (7, [0, 5, 10], [0, 4, 8]),
        (1, [0, 1, 2, 3], [0, 1, 2]),
    ],
    ids=str,
)
def test_even_windows_of_any_map(window, height, width):
    """Each window between the given edges attends on its own and without padding."""
    layer = even(window)
    x = torch.randn(1, height[-1], width[-1], 12, dtype=torch.float64)
    expected = torch.empty_like(x)
    for top, bottom in itertools.pairwise(height):
        for left, right in itertools.pairwise(width):
            part = x[0, top:bottom, left:right]
            flat = written_out(layer.w_msa, part.reshape(-1, 12), part.shape[:2])
            expected[0, top:bottom, left:right] = flat.view(part.shape)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 5, 14])
def test_even_windows_are_few_and_never_empty(window):
    layer, calls = even(window), []
    layer.w_msa.register_forward_pre_hook(lambda module, args: calls.append(args))
    for side in range(1, 44):
        with torch.no_grad():
            layer(torch.zeros(1, side, 1, 12, dtype=torch.float64))
        windows, (height, width), _ = calls.pop()
        assert width == 1
        assert height <= window
        assert len(windows) == -(-side // window)
        assert (len(windows) - 1) * height < side <= len(windows) * height


def test_even_windows_of_a_batch():
    layer = even()
    x = torch.randn(3, 5, 9, 12, dtype=torch.float64)
    alone = torch.cat([layer(sample[None]) for sample in x])
    torch.testing.assert_close(layer(x), alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_even_windows_in_other_dtypes(dtype):
    layer = even().to(dtype)
    x = torch.randn(2, 5, 6, 12, dtype=dtype, requires_grad=True)
    out = layer(x)
    assert out.dtype == dtype
    exact = even()
    exact.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
    expected = exact(x.detach().double())
    limit = {torch.float32: 1e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    assert (out - expected).abs().max() / expected.abs().max() < limit
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_gradients_of_even_windows():
    layer = even(window=2)
    x = torch.randn(1, 3, 1, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert set(dict(layer.named_buffers())) == {"w_msa.relative_position_index"}
    assert set(layer.state_dict()) == set(dict(layer.named_parameters()))


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_heads must divide embed_dims=12, got num_heads=5"):
        WindowMSA(12, 5, (7, 7))
    with pytest.raises(ValueError, match="num_heads must be at least 1, got 0"):
        WindowMSA(12, 0, (7, 7))
    with pytest.raises(ValueError, match="window_size must be at least 1, got 0"):
        WindowAttention(12, 3, 0)
    with pytest.raises(ValueError, match="window_size must be at least 1, got 0"):
        EvenWindowAttention(12, 3, 0)
