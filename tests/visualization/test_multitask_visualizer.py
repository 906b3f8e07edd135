"""Colours of the maps of each task, and the figure of a sample with all of them."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import VISUALIZERS
from mmengine.structures import BaseDataElement, PixelData

from mmlocal.tasks import TASKS
from mmlocal.visualization import MultiTaskVisualizer
from mmlocal.visualization.multitask_maps import (
    IGNORED_COLOUR,
    colour_map,
    depth_limits,
    tile_panels,
)

SIZE = (12, 20)


def maps(task: str) -> torch.Tensor:
    """A label map whose first row is ignored."""
    generator = torch.Generator().manual_seed(0)
    if task == "normals":
        values = torch.randn(3, *SIZE, generator=generator)
        values = values / values.norm(dim=0)
    elif task == "depth":
        values = torch.rand(1, *SIZE, generator=generator) + 1
    else:
        values = torch.randint(0, 2, (1, *SIZE), generator=generator)
    values[:, 0] = 255
    return values


def sample(gt=tuple(TASKS), pred=tuple(TASKS)) -> BaseDataElement:
    made = BaseDataElement()
    for name in gt:
        made.set_field(PixelData(data=maps(name)), TASKS[name].gt_field)
    for name in pred:
        made.set_field(PixelData(data=maps(name).float().clamp(max=1)), TASKS[name].pred_field)
    return made


@pytest.mark.parametrize("task", TASKS)
def test_colours(task):
    values = maps(task)
    drawn = colour_map(task, values.numpy())
    assert drawn.shape == (*SIZE, 3)
    assert drawn.dtype == np.uint8
    assert (drawn[0] == IGNORED_COLOUR).all()
    rest = drawn[1:].reshape(-1, 3)
    assert not (rest == IGNORED_COLOUR).all(axis=1).any()
    if values.shape[0] == 1:
        np.testing.assert_array_equal(colour_map(task, values[0].numpy()), drawn)


def test_values_of_the_colours():
    normal = np.array([0.0, 1.0, -1.0]).reshape(3, 1, 1)
    assert colour_map("normals", normal).tolist() == [[[128, 255, 0]]]
    assert colour_map("edge", np.array([[0, 1]])).tolist() == [[[255] * 3, [0] * 3]]
    assert colour_map("sal", np.array([[0.0, 0.6]])).tolist() == [[[0] * 3, [153] * 3]]
    palette = [(1, 2, 3), (4, 5, 6)]
    assert colour_map("semseg", np.array([[1, 0]]), palette).tolist() == [[[4, 5, 6], [1, 2, 3]]]
    assert colour_map("human_parts", np.array([[0]])).tolist() == [[[0, 0, 0]]]


def test_classes_without_palette_differ():
    drawn = colour_map("semseg", np.arange(41)[None])
    assert len({tuple(colour) for colour in drawn[0].tolist()}) == 41


def test_depth_has_the_given_limits():
    depth = np.array([[0.5, 1.0, 2.0, 9.0]])
    drawn = colour_map("depth", depth, limits=(1.0, 2.0))
    np.testing.assert_array_equal(drawn[0, 0], drawn[0, 1])
    np.testing.assert_array_equal(drawn[0, 2], drawn[0, 3])
    assert depth_limits(np.array([0.0, 255.0, 3.0, 1.5])) == (1.5, 3.0)
    assert depth_limits(np.array([0.0, 255.0])) == (0.0, 1.0)
    assert colour_map("depth", np.full((1, 2, 2), 3.0)).shape == (2, 2, 3)


def test_mistakes():
    with pytest.raises(ValueError, match=r"task must be one of semseg, .* got 'flow'"):
        colour_map("flow", np.zeros((1, 2, 2)))
    with pytest.raises(ValueError, match=r"'normals' must have shape \(3, H, W\), got \(1, 2, 2"):
        colour_map("normals", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="rows must hold images of one size"):
        tile_panels([[("a", np.zeros((2, 2, 3))), ("b", np.zeros((2, 3, 3)))]])


def visualizer(**settings) -> MultiTaskVisualizer:
    made = VISUALIZERS.build(dict(type="mmlocal.MultiTaskVisualizer", **settings))
    made.dataset_meta = dict(palette=[(1, 2, 3), (4, 5, 6)])
    return made


@pytest.mark.parametrize(
    ("gt", "pred", "rows", "columns"),
    [
        (tuple(TASKS), tuple(TASKS), 2, 7),
        (tuple(TASKS), (), 1, 7),
        ((), ("depth",), 1, 2),
        (("semseg",), ("depth", "edge"), 2, 4),
        ((), (), 1, 1),
    ],
)
def test_figure(gt, pred, rows, columns):
    """One column for the image and for each task, in the size of the image."""
    image = np.full((*SIZE, 3), 77, np.uint8)
    drawn = visualizer(name=f"figure-{rows}-{columns}").draw(image, sample(gt, pred))
    height, width = SIZE[0] * 10 + 26, SIZE[1] * 10 + 4
    assert drawn.shape == (rows * height, columns * width, 3)
    assert (drawn[22 : height - 4, : width - 4] == 77).all()
    if "semseg" in gt:
        colours = {tuple(c) for c in drawn[22 : height - 4, width : 2 * width - 4].reshape(-1, 3)}
        assert colours == {(1, 2, 3), (4, 5, 6), IGNORED_COLOUR}


def test_maps_of_another_size():
    """A pipeline may scale the labels, and the network the predictions."""
    image = np.zeros((6, 10, 3), np.uint8)
    assert visualizer(name="sizes").draw(image, sample()).shape == (2 * (120 + 26), 7 * 204, 3)


def test_writes_a_file_or_to_the_backends(tmp_path):
    image = np.zeros((*SIZE, 3), np.uint8)
    drawing = visualizer(
        name="files", save_dir=str(tmp_path / "run"), vis_backends=[dict(type="LocalVisBackend")]
    )
    drawing.add_datasample("a", image, sample(), out_file=str(tmp_path / "new" / "a.png"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    drawing.add_datasample("val_1.png", image, sample(), step=3)
    (written,) = (tmp_path / "run").rglob("val_1.png_3.png")
    np.testing.assert_array_equal(cv2.imread(str(written)), cv2.imread(str(tmp_path / "new/a.png")))
    np.testing.assert_array_equal(drawing.get_image(), cv2.imread(str(written))[..., ::-1])
