"""Plots of runs and comparisons."""

import json

import cv2
import pytest

from mmlocal.visualization import Contender, Metric, plot_contenders, plot_curves, plot_metrics
from mmlocal.visualization.palette import style_of
from mmlocal.visualization.runs import read_curves


def log(path, *entries: dict):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def parts(tmp_path) -> list:
    """Logs of a run that was killed after step 4, and resumed from step 2."""
    first = [dict(loss=9.0 - step, step=step) for step in (1, 2, 3, 4)]
    second = [dict(loss=5.5, step=3), dict(loss=4.5, step=4), {"acc": 60.0, "step": 2}]
    return [log(tmp_path / "a.json", *first), log(tmp_path / "b.json", *second)]


def test_curves_of_a_resumed_run(parts, tmp_path):
    found = read_curves(parts, ["loss", "acc", "nothing"])
    assert found["loss"] == {1: 8.0, 2: 7.0, 3: 5.5, 4: 4.5}
    assert found["acc"] == {4: 60.0}  # the validation counts epochs
    assert found["nothing"] == {}
    plot_curves(parts, tmp_path / "curves.png", {"loss": "all"}, {"acc": "accuracy"}, 0.01)
    assert cv2.imread(str(tmp_path / "curves.png")).std() > 10
    with pytest.raises(ValueError, match=r"must hold one of the losses \('other',\)"):
        plot_curves(parts, tmp_path / "none.png", {"other": "other"}, {})
    assert not (tmp_path / "none.png").exists()


def test_metrics(parts, tmp_path):
    metrics = [Metric("acc", "accuracy", "higher"), Metric("loss", "loss", "lower")]
    plot_metrics({"uqna": parts[1:]}, tmp_path / "one.png", metrics, "title")
    plot_metrics({"uqna": parts[1:], "mine": parts}, tmp_path / "two.png", metrics, "title")
    pictures = [cv2.imread(str(tmp_path / f"{name}.png")) for name in ("one", "two")]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()


def test_contenders(tmp_path):
    rows = [
        Contender(name, [mean - 1, mean + 1], mean, std, {"ms": mean / 9, "MiB": 3.0})
        for name, mean, std in (("ELSA", 50.0, 2.0), ("mine", 60.0, None), ("DDF", 55.0, 0.5))
    ]
    plot_contenders(rows, tmp_path / "all.png", "accuracy", "title")
    plot_contenders(rows[:1], tmp_path / "one.png", "accuracy")
    pictures = [cv2.imread(str(tmp_path / f"{name}.png")) for name in ("all", "one")]
    assert pictures[0].shape[0] > pictures[1].shape[0]
    red, green, blue = (int(style_of("ELSA").colour[i : i + 2], 16) for i in (1, 3, 5))
    for picture in pictures:
        assert (picture == (blue, green, red)).all(axis=-1).any()
    with pytest.raises(ValueError, match="contenders must hold at least one model"):
        plot_contenders([], tmp_path / "none.png", "accuracy")
    assert not (tmp_path / "none.png").exists()


def test_palette():
    """Ours have strong colours, all others one grey; a thing looks the same under all its names."""
    assert style_of("dwconv") == style_of("DepthwiseConv")
    assert style_of("swin") == style_of("WindowAttention")
    assert style_of("elsa") == style_of("ELSA")
    assert len({style_of(name).colour for name in ("ELSA", "QnA", "OutlookAttention")}) == 3
    unknown = style_of("mine")
    assert (unknown.words, unknown.ours) == ("mine", False)
    assert unknown.colour == style_of("halo").colour
