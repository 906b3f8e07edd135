"""Sheets of predictions: masks, their agreement, and the hook that collects them."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from mmlocal.visualization import Panel, draw_sheet
from mmlocal.visualization.masks import Mark, agreement, draw_marks, inner_point

SIZE = 64
NAMES = ("background", "square", "disc")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
HOOK = "mmlocal.visualization.sheets.SheetHook"


def box(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def test_marks_have_the_colours_of_their_classes():
    image = np.full((SIZE, SIZE, 3), 200, np.uint8)
    inside = box(12, 12, 8, 8)
    drawn = draw_marks(image, [Mark(inside, 1), Mark(box(8, 8, 40, 40), 2)], PALETTE, scale=2)
    assert drawn.shape == (2 * SIZE, 2 * SIZE, 3)
    red, blue, rest = drawn[32, 32].astype(int), drawn[80, 80].astype(int), drawn[120, 120]
    assert red[0] - red[2] > 100  # the small one is on top of the large one
    assert blue[2] - blue[0] > 100
    assert len(set(rest.tolist())) == 1
    assert (draw_marks(image, [], PALETTE, scale=1) == rest).all()


def test_point_of_a_label():
    ring = box(0, 0, 60, 60) & ~box(10, 10, 40, 40)
    x, y = inner_point(ring)
    assert ring[y, x]
    assert inner_point(box(0, 0, 9, 9)) == (4, 4)


def test_agreement():
    truth = [Mark(box(0, 0, 10, 10), 1), Mark(box(20, 20, 10, 10), 2)]
    assert agreement(truth, truth) == 1
    assert agreement([], []) == 1
    assert agreement(truth, []) == 0
    assert agreement(truth, truth[:1]) == pytest.approx(1 / 1.5)
    wrong_class = [Mark(truth[0].mask, 2), truth[1]]
    assert agreement(truth, wrong_class) == pytest.approx(1 / 2)
    shifted = [Mark(box(2, 0, 10, 10), 1), truth[1]]
    assert agreement(truth, shifted) == pytest.approx((80 / 120 + 1) / 2)
    twice = [truth[0], truth[0], truth[1]]
    assert agreement(truth, twice) == pytest.approx(2 / 2.5)


def test_sheet(tmp_path):
    """Rows and columns in their order, with room for names, titles and legend."""
    colours = [[(200, 0, 0), (0, 200, 0)], [(0, 0, 200), (200, 200, 0)]]
    rows = [
        (f"row {index}", [Panel(np.full((50, 100, 3), colour, np.uint8)) for colour in row])
        for index, row in enumerate(colours)
    ]
    draw_sheet(rows, tmp_path / "sheet.png", {"red": (200, 0, 0)}, "title", width=800)
    drawn = cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1]
    assert drawn.shape[1] == 800
    places = {
        colour: np.argwhere((drawn == colour).all(axis=-1)).mean(axis=0)
        for row in colours[:2]
        for colour in row
        if colour != (200, 0, 0)  # the legend has it too
    }
    green, blue, yellow = (places[c] for c in ((0, 200, 0), (0, 0, 200), (200, 200, 0)))
    assert green[0] < blue[0] == pytest.approx(yellow[0], abs=1)
    assert blue[1] < green[1] == pytest.approx(yellow[1], abs=1)
    bare = tmp_path / "bare.png"
    draw_sheet(rows, bare, width=800)
    assert cv2.imread(str(bare)).shape[0] < drawn.shape[0]
    with pytest.raises(ValueError, match="rows must hold at least one picture"):
        draw_sheet([("none", [])], tmp_path / "none.png")


def image_file(folder, number: int) -> str:
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), 60 + 10 * number, np.uint8))
    return str(path)


class Samples(list):
    metainfo = dict(classes=NAMES, palette=PALETTE)  # noqa: RUF012


def run_hook(folder, samples, **settings):
    hook = HOOKS.build(dict(type=HOOK, folder=str(folder), **settings))
    dataset = Samples(samples)
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset))
    hook.before_test_epoch(runner)
    for index in range(0, len(samples), 2):
        hook.after_test_iter(runner, index // 2, None, samples[index : index + 2])
    hook.after_test_epoch(runner, {})
    return hook


def detection(folder, number: int, found: int) -> BaseDataElement:
    """Two true objects. The model finds some of them, and one more below the threshold."""
    masks = np.stack([box(4, 4, 20, 20), box(34, 34, 20, 20), box(4, 40, 9, 9)])
    sample = BaseDataElement(metainfo=dict(img_path=image_file(folder, number)))
    sample.gt_instances = InstanceData(labels=torch.tensor([1, 2]), masks=torch.tensor(masks[:2]))
    order = [*range(found), 2]
    sample.pred_instances = InstanceData(
        labels=torch.tensor([1, 2, 1])[order],
        scores=torch.tensor([0.9, 0.8, 0.3])[order],
        masks=torch.tensor(masks)[order],
    )
    return sample


def test_detections(tmp_path):
    samples = [detection(tmp_path, number, found) for number, found in enumerate((0, 1, 2, 1, 2))]
    out = tmp_path / "out"
    out.mkdir()
    hook = run_hook(out, samples, columns=2, objects=2, first=3)
    good = [picture.image[0, 0, 0] for _, picture in hook._good]
    assert good == [80, 100]  # all objects of these two are found
    assert all(len(picture.prediction) == 2 for _, picture in hook._good)
    for name in ("predictions.jpg", "first_images.jpg"):
        assert cv2.imread(str(out / name)).std() > 10


def test_label_maps(tmp_path):
    samples = []
    for number, shift in enumerate((9, 0, 3)):
        sample = BaseDataElement(metainfo=dict(img_path=image_file(tmp_path, number)))
        maps = [2 * box(10 + x, 10, 30, 30).astype(int) for x in (0, shift)]
        maps[0][:3] = 255  # not labelled
        sample.gt_sem_seg, sample.pred_sem_seg = (
            PixelData(data=torch.tensor(labels[None])) for labels in maps
        )
        samples.append(sample)
    hook = run_hook(tmp_path, samples, columns=3, objects=1)
    assert [picture.image[0, 0, 0] for _, picture in hook._good] == [70, 80, 60]
    assert all([mark.label for mark in picture.truth] == [2] for _, picture in hook._good)
    assert (tmp_path / "predictions.jpg").exists()


def test_classes(tmp_path):
    samples = []
    for number in range(7):
        sample = BaseDataElement(metainfo=dict(img_path=image_file(tmp_path, number)))
        sample.set_field(torch.tensor([1]), "gt_label")
        sample.set_field(torch.tensor([1 + number % 2]), "pred_label")
        sample.set_field(torch.tensor([0.0, 0.4, 0.6]), "pred_score")
        samples.append(sample)
    hook = run_hook(tmp_path, samples, classes=2)
    assert [picture.image[0, 0, 0] for picture in hook._first] == [60, 90, 120]
    drawn = cv2.imread(str(tmp_path / "predictions.jpg"))[..., ::-1].astype(int)
    for colour in ((0x1A, 0x7F, 0x37), (0xC0, 0x1C, 0x28)):  # right and wrong
        assert (abs(drawn - colour) < 40).all(axis=-1).any()
    assert not (tmp_path / "first_images.jpg").exists()


def test_mistakes(tmp_path):
    sample = BaseDataElement(metainfo=dict(img_path=image_file(tmp_path, 1)))
    with pytest.raises(ValueError, match="must have pred_instances, pred_sem_seg or pred_label"):
        run_hook(tmp_path, [sample])
    sample.set_metainfo(dict(img_path="none.png"))
    with pytest.raises(ValueError, match=r"img_path 'none.png' of a sample cannot be read"):
        run_hook(tmp_path, [sample])
