"""Pictures of runs."""

import cv2
import pytest

from mmlocal.visualization import plot_spread


def test_spread(tmp_path):
    """More models than colours, and one without an error bar."""
    points = {f"model {i}": (i + 1.0, 50.0 + i, float(i)) for i in range(12)}
    plot_spread(points, tmp_path / "all.png", "ms", "accuracy")
    plot_spread({"one": (1.0, 2.0, 0.0)}, tmp_path / "one.png", "ms", "accuracy")
    pictures = [cv2.imread(str(tmp_path / f"{name}.png")) for name in ("all", "one")]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()
    with pytest.raises(ValueError, match="points must name at least one model"):
        plot_spread({}, tmp_path / "none.png", "ms", "accuracy")
    assert not (tmp_path / "none.png").exists()
