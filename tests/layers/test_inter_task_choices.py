"""The choices that ITSA's article leaves open, each against its definition."""

import pytest
import torch

from mmlocal.layers import DeformableAttention, InterTaskAttention, InterTaskBlock, TaskPyramid
from mmlocal.layers.task_positions import sine_positions, task_positions

TASKS, LEVELS, DIMS = 3, 3, 8


def maps(*extra: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(2, TASKS, 9, 6, *(extra or (DIMS,)))


@pytest.mark.parametrize("downsample", ["conv", "conv1x1_pool"])
def test_levels_from_level_0(downsample):
    torch.manual_seed(0)
    pyramid = TaskPyramid(DIMS, TASKS, LEVELS, downsample, level_source="first")
    x = maps()
    value, shapes = pyramid(x)
    # The sizes are those of the default.
    assert shapes == TaskPyramid(DIMS, TASKS, LEVELS, downsample)(x)[1]
    assert shapes == [(9, 6)] * TASKS + [(5, 3)] * TASKS + [(3, 2)] * TASKS
    layer = pyramid.halvings[1].tasks[2]
    expected = layer(x[:, 2].permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(value[:, -6:], expected)


def test_maps_of_a_task_side_by_side():
    torch.manual_seed(0)
    by_level = TaskPyramid(DIMS, TASKS, LEVELS)
    by_task = TaskPyramid(DIMS, TASKS, LEVELS, map_order="task")
    by_task.load_state_dict(by_level.state_dict())
    (value, shapes), (other, other_shapes) = by_level(maps()), by_task(maps())
    parts = value.split([h * w for h, w in shapes], dim=1)
    order = [level * TASKS + task for task in range(TASKS) for level in range(LEVELS)]
    assert other_shapes == [shapes[index] for index in order]
    torch.testing.assert_close(other, torch.cat([parts[index] for index in order], dim=1))


def test_order_of_maps_changes_nothing_else():
    """With the columns of offsets and weights moved, and in pictures."""
    torch.manual_seed(0)
    settings = dict(num_heads=2, num_points=2, dropout=0.0)
    by_level = InterTaskAttention(DIMS, TASKS, LEVELS, **settings)
    by_task = InterTaskAttention(DIMS, TASKS, LEVELS, map_order="task", **settings)
    with torch.no_grad():
        for parameter in by_level.parameters():
            parameter.normal_(std=0.3)
    state = by_level.state_dict()
    order = [level * TASKS + task for task in range(TASKS) for level in range(LEVELS)]
    for name, values in (("sampling_offsets", 4), ("attention_weights", 2)):
        for kind in ("weight", "bias"):
            key = f"attention.{name}.{kind}"
            grouped = state[key].unflatten(0, (2, TASKS * LEVELS, values))
            state[key] = grouped[:, order].flatten(0, 2)
    by_task.load_state_dict(state)
    torch.testing.assert_close(by_task(maps()), by_level(maps()))
    for ours, theirs in zip(
        by_task.sampled_positions(maps()), by_level.sampled_positions(maps()), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_fresh_positions_in_each_step():
    torch.manual_seed(0)
    settings = dict(num_steps=2, num_levels=1, num_heads=2, num_points=2, position_channels=8)
    block = InterTaskBlock(DIMS, TASKS, reattach_positions=True, **settings).eval()
    x = maps()
    positions = task_positions(x, 8, "canvas")
    first, second = block.steps
    y = first(torch.cat((x, positions), dim=4))
    y = second(torch.cat((y[..., :DIMS], positions), dim=4))
    torch.testing.assert_close(block(x), block.smlp(y[..., :DIMS]))
    torch.testing.assert_close(block.refine(x)[0], block(x))
    other = InterTaskBlock(DIMS, TASKS, **settings).eval()
    other.load_state_dict(block.state_dict())
    assert not torch.allclose(other(x), block(x))


def test_positions_count_pixels():
    small = sine_positions(3, 4, 8, normalize=False)
    large = sine_positions(5, 7, 8, normalize=False)
    torch.testing.assert_close(small, large[:3, :4])
    torch.testing.assert_close(small[2, 3, 0], torch.tensor(3.0).sin())
    torch.testing.assert_close(small[2, 3, 5], torch.tensor(4.0).cos())
    block = InterTaskBlock(DIMS, TASKS, num_steps=1, num_heads=2, normalize_positions=False)
    assert block(maps()).shape == maps().shape


def test_norm_behind_the_ffn():
    torch.manual_seed(0)
    step = InterTaskAttention(DIMS, TASKS, 1, num_heads=2, ffn_norm=True).eval()
    plain = InterTaskAttention(DIMS, TASKS, 1, num_heads=2).eval()
    state = {k: v for k, v in step.state_dict().items() if not k.startswith("ffn_norm.")}
    plain.load_state_dict(state)
    torch.testing.assert_close(step(maps()), step.ffn_norm(plain(maps())))


def test_points_start_at_the_reference():
    layer = DeformableAttention(DIMS, 2, num_maps=3, num_points=4, offset_init="zeros")
    assert not layer.sampling_offsets.bias.any()
    assert not layer.sampling_offsets.weight.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(level_source="last"), "level_source"),
        (dict(map_order="point"), "map_order"),
        (dict(offset_init="random"), "offset_init"),
    ],
)
def test_unknown_names(settings, message):
    with pytest.raises(ValueError, match=message):
        InterTaskBlock(DIMS, TASKS, num_heads=2, **settings)


@pytest.mark.parametrize("flag", ["reattach_positions", "normalize_positions", "ffn_norm"])
def test_flags(flag):
    with pytest.raises(TypeError, match=flag):
        InterTaskBlock(DIMS, TASKS, num_heads=2, **{flag: "no"})
