"""Inter-task attention: the parts written out, equivalences, sizes, costs, and bad input."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlocal.analysis import count_work
from mmlocal.layers import InterTaskAttention, InterTaskBlock, TaskPyramid
from mmlocal.layers.task_positions import cell_centres, sine_positions, task_positions


def randomise(layer: nn.Module) -> nn.Module:
    """Let the offsets and weights depend on the query, and give all parameters some noise."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return layer


def make_step(**kwargs) -> InterTaskAttention:
    defaults = dict(embed_dims=12, num_tasks=3, num_heads=2, num_points=2)
    torch.manual_seed(0)
    return randomise(InterTaskAttention(**defaults | kwargs)).eval()


def make_block(**kwargs) -> InterTaskBlock:
    defaults = dict(embed_dims=8, num_tasks=3, num_heads=2, num_points=2, position_channels=4)
    torch.manual_seed(0)
    return randomise(InterTaskBlock(**defaults | kwargs)).eval()


def maps(*size: int, tasks: int = 3, channels: int = 12, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, tasks, *size, channels)


def test_positions_written_out():
    found = sine_positions(3, 5, 8)
    for row, col, channel in itertools.product(range(3), range(5), range(8)):
        step, size = (row + 1, 3) if channel < 4 else (col + 1, 5)
        index = channel % 4
        angle = step / size * 2 * math.pi / 10000 ** (2 * (index // 2) / 4)
        expected = math.cos(angle) if index % 2 else math.sin(angle)
        assert float(found[row, col, channel]) == pytest.approx(expected, abs=2e-6)


def test_positions_are_those_of_mmdet():
    pytest.importorskip("mmcv._ext", reason="mmdet needs the compiled ops of mmcv")
    layers = pytest.importorskip("mmdet.models.layers", reason="mmdet is not installed")
    official = layers.SinePositionalEncoding(num_feats=12, normalize=True)
    expected = official(torch.zeros(1, 28, 9, dtype=torch.bool))[0].permute(1, 2, 0)
    torch.testing.assert_close(sine_positions(28, 9, 24), expected, rtol=0, atol=1e-6)
    canvas = task_positions(torch.zeros(2, 4, 7, 9, 1), 24, "canvas")
    torch.testing.assert_close(canvas[1].flatten(0, 1), expected, rtol=0, atol=1e-6)


def test_positions_of_each_task():
    x = torch.zeros(2, 4, 7, 9, 1, dtype=torch.bfloat16)
    found = task_positions(x, 24, "task")
    assert found.dtype == torch.bfloat16
    for task in range(4):
        assert torch.equal(found[1, task], sine_positions(7, 9, 24).bfloat16())


def test_cell_centres():
    found = cell_centres(torch.zeros(2, 3, 4, 5, 1)).view(3, 4, 5, 2)
    for task, row, col in itertools.product(range(3), range(4), range(5)):
        expected = torch.tensor([(col + 0.5) / 5, (row + 0.5) / 4])
        torch.testing.assert_close(found[task, row, col], expected)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("downsample", ["conv", "conv1x1_pool"])
@pytest.mark.parametrize("size", [(7, 10), (1, 1), (2, 1)], ids=str)
def test_pyramid(size, downsample, share):
    """Maps of a level come in the order of the tasks, and sizes are rounded up."""
    pyramid = randomise(TaskPyramid(12, 3, downsample=downsample, share=share))
    x = maps(*size)
    value, shapes = pyramid(x)
    h, w = size
    levels = [(h, w), (-(-h // 2), -(-w // 2)), (-(-h // 4), -(-w // 4))]
    assert shapes == [level for level in levels for _ in range(3)]
    found = value.split([h * w for h, w in shapes], dim=1)
    for task in range(3):
        level = x[:, task].permute(0, 3, 1, 2)
        for index, shape in enumerate(levels):
            if index:
                layer = pyramid.halvings[index - 1].tasks[0 if share else task]
                if downsample == "conv":
                    level = F.conv2d(level, layer.weight, layer.bias, stride=2, padding=1)
                else:
                    level = F.conv2d(level, layer[0].weight, layer[0].bias)
                    odd = [0, level.shape[3] % 2, 0, level.shape[2] % 2]
                    level = F.max_pool2d(F.pad(level, odd, value=-math.inf), 2)
            expected = level.permute(0, 2, 3, 1).flatten(1, 2)
            assert level.shape[2:] == shape
            torch.testing.assert_close(found[3 * index + task], expected)


def test_one_level_is_the_map():
    x = maps(3, 4)
    value, shapes = TaskPyramid(12, 3, num_levels=1)(x)
    assert torch.equal(value, x.flatten(1, 3))
    assert shapes == [(3, 4)] * 3


def test_step_written_out():
    step = make_step()
    x = maps(5, 7)
    value, shapes = step.pyramid(x)
    centres = [
        ((col + 0.5) / 7, (row + 0.5) / 5)
        for _, row, col in itertools.product(range(3), range(5), range(7))
    ]
    points = torch.tensor(centres)[None, :, None].expand(2, -1, 9, -1)
    query = x.flatten(1, 3)
    y = step.norm(query + step.attention(query, value, points, shapes))
    out = y + step.ffn[3](step.ffn[0](y).relu())
    torch.testing.assert_close(step(x), out.view(x.shape))
    assert step.ffn[0].weight.shape == (48, 12)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 64)], ids=str)
def test_inference_on_cpus_takes_some_pixels_at_a_time(size):
    step, x = make_step(num_tasks=1, num_levels=1), maps(*size, tasks=1)
    expected = step(x)
    with torch.no_grad():
        torch.testing.assert_close(step(x), expected)


def test_dropouts():
    """The output of the attention, and both layers of the FFN."""
    step = InterTaskAttention(12, 3, dropout=0.25)
    rates = [m.p for m in step.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.25] * 3
    step.dropout.p = 1.0
    x = maps(3, 4)
    for index in (2, 4):
        step.ffn[index].p = 0.0
    y = step.norm(x)
    torch.testing.assert_close(step.train()(x), y + step.ffn(y))


@pytest.mark.parametrize("positions", ["canvas", "task", None])
def test_block_written_out(positions):
    block = make_block(num_steps=2, positions=positions)
    x = maps(5, 6, channels=8)
    y = x if positions is None else torch.cat((x, task_positions(x, 4, positions)), dim=4)
    for step in block.steps:
        y = step(y)
    out = F.layer_norm(F.linear(y[..., :8], block.smlp[0].weight, block.smlp[0].bias), (8,),
                       block.smlp[1].weight, block.smlp[1].bias)  # fmt: skip
    torch.testing.assert_close(block(x), out)
    assert len(block.steps) == 2
    assert block.steps[0].embed_dims == (8 if positions is None else 12)


def test_no_position_channels():
    none, zero = make_block(positions=None), make_block(position_channels=0)
    zero.load_state_dict(none.state_dict())
    x = maps(5, 6, channels=8)
    assert torch.equal(none(x), zero(x))


def test_shared_steps():
    block = make_block(share_steps=True, positions=None)
    x = maps(4, 5, channels=8)
    (step,) = block.steps
    torch.testing.assert_close(block(x), block.smlp(step(step(step(x)))))


def identity_projections(step: InterTaskAttention) -> None:
    with torch.no_grad():
        for layer in (step.attention.value_proj, step.attention.output_proj):
            layer.weight.copy_(torch.eye(step.embed_dims))
            layer.bias.zero_()


def test_one_task_and_one_level_average_around_each_pixel():
    """At the start, a head averages the next pixels in one direction, the last pixel repeated."""
    step = InterTaskAttention(8, 1, num_levels=1, num_points=3)
    identity_projections(step)
    x = maps(4, 6, tasks=1, channels=8)
    value, shapes = step.pyramid(x)
    out = step.attention(x.flatten(1, 3), value, cell_centres(x), shapes).view(x.shape)
    for head, (dy, dx) in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)]):
        for row, col in itertools.product(range(4), range(6)):
            near = [
                x[:, 0, min(max(row + k * dy, 0), 3), min(max(col + k * dx, 0), 5)]
                for k in (1, 2, 3)
            ]
            expected = torch.stack(near).mean(dim=0)[:, 2 * head : 2 * head + 2]
            found = out[:, 0, row, col, 2 * head : 2 * head + 2]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    nn.init.zeros_(step.attention.sampling_offsets.bias)
    out = step.attention(x.flatten(1, 3), value, cell_centres(x), shapes).view(x.shape)
    torch.testing.assert_close(out, x, rtol=0, atol=1e-5)


def test_order_of_tasks_does_not_matter():
    """Tasks in another order, and the parameters that belong to tasks too: the same outputs."""
    order = [2, 0, 1]
    block, other = (make_block(positions="task", num_steps=2) for _ in range(2))
    other.load_state_dict(block.state_dict())
    for step, moved in zip(block.steps, other.steps, strict=True):
        for old, new in zip(step.pyramid.halvings, moved.pyramid.halvings, strict=True):
            for place, task in enumerate(order):
                new.tasks[place].load_state_dict(old.tasks[task].state_dict())
        for name in ("sampling_offsets", "attention_weights"):
            layer, target = getattr(step.attention, name), getattr(moved.attention, name)
            # heads, levels, tasks, and points with their coordinates
            with torch.no_grad():
                weight = layer.weight.view(2, 3, 3, -1, 12)[:, :, order]
                target.weight.copy_(weight.reshape(layer.weight.shape))
                bias = layer.bias.view(2, 3, 3, -1)[:, :, order]
                target.bias.copy_(bias.reshape(layer.bias.shape))
    x = maps(5, 6, channels=8)
    torch.testing.assert_close(other(x[:, order]), block(x)[:, order], rtol=0, atol=1e-5)
    assert not torch.allclose(block(x[:, order]), block(x)[:, order], atol=1e-2)


@pytest.mark.parametrize("scale", [30.0, 200.0])
def test_the_gradient_scale_changes_nothing_but_gradients_of_offsets(scale):
    x = maps(4, 5, channels=8)
    grads, outputs = [], []
    for factor in (1.0, scale):
        block = make_block(num_steps=2, offset_grad_scale=factor)
        outputs.append(block(x))
        outputs[-1].square().sum().backward()
        grads.append({name: p.grad for name, p in block.named_parameters()})
    assert torch.equal(*outputs)
    for name, grad in grads[1].items():
        factor = scale if ".sampling_offsets." in name else 1.0
        assert torch.equal(grad, factor * grads[0][name]), name


def test_number_of_parameters():
    with torch.device("meta"):
        block = InterTaskBlock(256, 4)
    attention = block.steps[0].attention
    assert sum(p.numel() for p in attention.parameters()) == 804_784
    assert attention.sampling_offsets.weight.shape == (1536, 280)
    assert [p.offset_grad_scale for p in (step.attention for step in block.steps)] == [100.0] * 3
    ffn = 280 * 1120 + 1120 + 1120 * 280 + 280
    pyramid = 4 * 2 * (9 * 280 * 280 + 280)
    step = 804_784 + 2 * 280 + ffn + pyramid
    smlp = 256 * 256 + 3 * 256
    assert sum(p.numel() for p in block.parameters()) == 3 * step + smlp


def test_flops_of_the_paper():
    """0.24 T for one step with the linear layer behind it: one per product or sum."""
    with torch.device("meta"):
        block = InterTaskBlock(256, 4, num_steps=1).requires_grad_(False).eval()
        x = torch.zeros(1, 4, 107, 140, 256)
        _, work = count_work(lambda: block(x), dict(block.named_modules()))
    queries, pixels = 59_920, 78_820
    sampling = 9 * queries * 768 * 70
    projections = 280 * (queries * (1536 + 768 + 280) + pixels * 280)
    assert work["steps.0.attention"].flops == 2 * projections + sampling
    assert work["steps.0.pyramid"].flops == 2 * 9 * 280**2 * 4 * (3780 + 945)
    assert work["steps.0.ffn"].flops == 2 * queries * 2 * 280 * 1120
    assert work["smlp"].flops == 2 * queries * 256**2
    assert work[""].flops == sum(work[name].flops for name in ("steps.0", "smlp"))
    assert work[""].flops / 1e12 == pytest.approx(0.238, abs=5e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (9, 7)], ids=str)
@pytest.mark.parametrize("kwargs", [{}, {"num_levels": 1}, {"downsample": "conv1x1_pool"}], ids=str)
def test_sizes(size, kwargs):
    block = make_block(**kwargs).train()
    x = maps(*size, channels=8, batch=1).requires_grad_()
    out = block(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


def test_images_of_a_batch_do_not_mix():
    block = make_block()
    x = maps(4, 5, channels=8)
    for i in range(2):
        torch.testing.assert_close(block(x)[i : i + 1], block(x[i : i + 1]))


def test_sampled_positions():
    block = make_block(num_steps=2)
    x = maps(4, 5, channels=8)
    for index in (0, 1, -1):
        positions, weights, shapes = block.sampled_positions(x, index)
        y = torch.cat((x, task_positions(x, 4, "canvas")), dim=4)
        for step in block.steps[: index % 2]:
            y = step(y)
        expected = block.steps[index].sampled_positions(y)
        assert torch.equal(positions, expected[0])
        assert torch.equal(weights, expected[1])
        assert shapes == [(4, 5)] * 3 + [(2, 3)] * 3 + [(1, 2)] * 3
        assert positions.shape == (2, 60, 2, 9, 2, 2)
    with pytest.raises(ValueError, match=r"step must be .* num_steps=2, got 2"):
        block.sampled_positions(x, 2)


def test_compile_and_export():
    block = make_block(num_steps=1)
    x, other = maps(9, 10, channels=8), maps(14, 11, channels=8, batch=3)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))
    dims = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
    program = torch.export.export(block, (x,), dynamic_shapes=dims)
    torch.testing.assert_close(program.module()(other), block(other))


def test_autocast():
    block = make_block(num_steps=1)
    x = maps(6, 7, channels=8)
    exact = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = block(x)
    assert (out - exact).abs().mean() / exact.abs().mean() < 3e-2
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"num_tasks": 0}, ValueError, "num_tasks must be at least 1, got 0"),
        ({"num_levels": 0}, ValueError, "num_levels must be at least 1, got 0"),
        ({"num_points": 0}, ValueError, "num_points must be at least 1, got 0"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1, got 0"),
        ({"num_heads": 5}, ValueError, r"num_heads must divide .* 8 \+ 4 = 12, got num_heads=5"),
        ({"position_channels": 6}, ValueError, "position_channels must be a multiple of 4, .* 6"),
        ({"position_channels": -4}, ValueError, "position_channels must be at least 0, got -4"),
        ({"positions": "image"}, ValueError, "positions must be one of canvas, task, got 'image'"),
        ({"share_steps": 1}, TypeError, "share_steps must be True or False, got 1"),
        ({"share_downsample": 1}, TypeError, "share_downsample must be True or False, got 1"),
        ({"downsample": "pool"}, ValueError, "downsample must be one of conv, conv1x1_pool, got"),
        ({"ffn_channels": 0}, ValueError, "ffn_channels must be at least 1, got 0"),
        ({"dropout": 1.5}, ValueError, r"dropout must be in \[0, 1\], got 1\.5"),
        ({"offset_grad_scale": -1}, ValueError, "offset_grad_scale must be positive, got -1"),
        ({"padding_mode": "clip"}, ValueError, "padding_mode must be one of border, zeros, got"),
        ({"num_offsets": 4}, TypeError, "num_offsets"),
    ],
    ids=str,
)
def test_bad_arguments(kwargs, error, message):
    with pytest.raises(error, match=message):
        make_block(**kwargs)


def test_bad_input():
    block = make_block()
    with pytest.raises(ValueError, match=r"x must be \(B, num_tasks=3, H, W, embed_dims=8\), got"):
        block(maps(4, 5, tasks=2, channels=8))
    with pytest.raises(ValueError, match=r"x must be \(B, num_tasks=3, H, W, embed_dims=8\), got"):
        block(maps(4, 5, channels=12))
    with pytest.raises(ValueError, match=r"x must be \(B, num_tasks=3, H, W, embed_dims=12\), got"):
        make_step()(maps(4, 5, channels=8))
    with pytest.raises(TypeError, match="x must be a tensor, got NoneType"):
        block(None)
