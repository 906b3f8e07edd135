"""The positions that one pixel reads: found in the right rows of the layer's tables, and drawn."""

import numpy as np
import pytest
import torch
from torch import nn

from mmlocal.layers import InterTaskBlock
from mmlocal.visualization.sampling import Samples, collect_samples, draw_samples
from mmlocal.visualization.sampling import find_sampling_layers as find

TASKS = ["semseg", "depth", "normals"]
SIZE = (6, 9)


@pytest.fixture
def block() -> InterTaskBlock:
    torch.manual_seed(0)
    block = InterTaskBlock(
        8, num_tasks=3, num_steps=2, num_levels=2, num_heads=2, num_points=4, position_channels=4
    )
    for step in block.steps:
        nn.init.normal_(step.attention.sampling_offsets.weight)
        nn.init.normal_(step.attention.attention_weights.weight)
    return block.eval()


def collect(block: InterTaskBlock, task: int, place: tuple, x=None) -> dict[str, Samples]:
    torch.manual_seed(1)
    x = torch.randn(2, 3, *SIZE, 8) if x is None else x
    with collect_samples(find(block), task, place) as samples, torch.no_grad():
        block(x)
    assert not any(module._forward_hooks for module in block.modules())
    return samples


@pytest.mark.parametrize(("task", "row", "column"), [(0, 0, 0), (1, 3, 5), (2, 5, 8)])
def test_samples_of_a_pixel(block, task, row, column):
    torch.manual_seed(1)
    x = torch.randn(2, 3, *SIZE, 8)
    place = ((column + 0.5) / SIZE[1], (row + 0.5) / SIZE[0])
    found = collect(block, task, place, x)
    assert list(found) == ["steps.0", "steps.1"]
    for index, samples in enumerate(found.values()):
        with torch.no_grad():
            positions, weights, shapes = block.sampled_positions(x, step=index)
        query = task * SIZE[0] * SIZE[1] + row * SIZE[1] + column
        assert samples.sizes == [SIZE, (3, 5)]
        for level in range(2):
            for other in range(3):
                number = level * 3 + other  # levels outside, tasks inside
                assert shapes[number] == samples.sizes[level]
                torch.testing.assert_close(
                    samples.positions[:, level, other], positions[0, query, :, number]
                )
                torch.testing.assert_close(
                    samples.weights[:, level, other], weights[0, query, :, number]
                )
        torch.testing.assert_close(samples.weights.sum(dim=(1, 2, 3)), torch.ones(2))


def test_pixels_of_the_border(block):
    """The last pixel of an image belongs to the last cell."""
    last = collect(block, 1, (0.999, 0.999))["steps.0"]
    beyond = collect(block, 1, (1.0, 1.0))["steps.0"]
    torch.testing.assert_close(last.positions, beyond.positions)


def test_figure(block):
    place = (0.25, 0.75)
    samples = collect(block, 1, place)["steps.1"]
    image = np.full((24, 36, 3), 100, np.uint8)
    pictures = {"depth": np.zeros((24, 36, 3), np.uint8)}
    figure = draw_samples(samples, image, TASKS, "depth", place, "title", pictures)
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert len(panels) == 6
    shares = 0.0
    for number, axis in enumerate(panels):
        level, task = divmod(number, 3)
        name, share = axis.get_title().split(": ")
        assert name == f"{TASKS[task]}, {samples.sizes[level][0]}x{samples.sizes[level][1]}"
        shares += float(share.split(" %")[0])
        (circles,) = axis.collections
        assert len(circles.get_offsets()) == 8
        x, y = axis.lines[0].get_data()
        assert (x[0], y[0]) == (9, 18)
        # The weights decide the order, the areas and the colours.
        weights = samples.weights[:, level, task].flatten().sort().values.numpy()
        np.testing.assert_allclose(circles.get_array(), weights)
        drawn = np.asarray(axis.images[0].get_array())
        assert (drawn == (114 if TASKS[task] == "depth" else 169)).all()
    assert shares == pytest.approx(100, abs=0.4)
    figure.canvas.draw()
