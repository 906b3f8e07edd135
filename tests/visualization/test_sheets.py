"""Sheets of predictions: masks, their agreement, and rows of panels."""

import cv2
import numpy as np
import pytest

from mmlocal.visualization import Panel, draw_sheet
from mmlocal.visualization.masks import Mark, agreement, draw_marks, inner_point
from mmlocal.visualization.sheets import Picture, _scores

SIZE = 64
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 0, 255))


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


def test_scores_stand_on_what_is_seen():
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    marks = [Mark(box(0, 0, 40, 40), 1, 0.9), Mark(box(12, 12, 16, 16), 2, 0.8)]
    found = {
        text: marks[1].mask[int(y), int(x)] for x, y, text in _scores(Picture(image, (), marks), 1)
    }
    assert found == {"80": True, "90": False}
    hidden = [Mark(marks[0].mask, 1, 0.7), *marks]  # twice the same mask
    assert len(_scores(Picture(image, (), hidden), 1)) == 3


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
