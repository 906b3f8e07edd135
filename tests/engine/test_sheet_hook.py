"""The hook that collects the predictions of a test and draws its sheets."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS
from mmengine.structures import BaseDataElement, InstanceData, PixelData

SIZE = 64
NAMES = ("background", "square", "disc")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


def box(x: int, y: int, width: int, height: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def image_file(folder, number: int) -> str:
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), 60 + 10 * number, np.uint8))
    return str(path)


class Samples(list):
    metainfo = dict(classes=NAMES, palette=PALETTE)  # noqa: RUF012


def run_hook(folder, samples, **settings):
    hook = HOOKS.build(dict(type="mmlocal.SheetHook", folder=str(folder), **settings))
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
