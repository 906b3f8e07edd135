"""A visualizer that draws every task of multi-task dense prediction beside its ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.dist import master_only
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer

from mmlocal.files import write_whole
from mmlocal.registry import VISUALIZERS
from mmlocal.tasks import TASKS, Task
from mmlocal.visualization.multitask_maps import colour_map, depth_limits, tile_panels

# Titles of the panels. A task without an entry has its own name.
_WORDS = {
    "semseg": "classes",
    "human_parts": "human parts",
    "sal": "saliency",
    "edge": "boundaries",
}


@VISUALIZERS.register_module()
class MultiTaskVisualizer(Visualizer):
    """Visualizer of all tasks that a data sample has.

    It draws one figure for a sample. The image is on the left, then follows one column for each
    task, with the ground truth above the prediction. Depth has one colour scale for both.

    MMSegmentation's ``SegVisualizationHook`` calls it. The colours of the classes come from
    ``palette`` of the data set's ``metainfo``.

    Args:
        name: name of the instance.
        parts_palette: RGB of each human part, background first; ``None`` for our colours.
        **kwargs: arguments of :class:`mmengine.visualization.Visualizer`.
    """

    def __init__(
        self, name: str = "visualizer", parts_palette: list | None = None, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.parts_palette = parts_palette

    @master_only
    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: BaseDataElement | None = None,
        draw_gt: bool = True,
        draw_pred: bool = True,
        show: bool = False,
        wait_time: float = 0,
        out_file: str | None = None,
        step: int = 0,
    ) -> None:
        """Draw a sample, and show it or write it.

        Args:
            name: title of the window, and name of the picture in the backends.
            image: ``(H, W, 3)`` uint8 in RGB.
            data_sample: sample with ``PixelData`` in the fields ``gt_*`` and ``pred_*`` of
                :data:`mmlocal.tasks.TASKS`; ``None`` draws the image alone.
            draw_gt: draw the ground truth.
            draw_pred: draw the predictions.
            show: open a window instead of writing to the backends.
            wait_time: seconds to show the window; 0 waits for a key.
            out_file: file to write instead of the backends.
            step: number of the picture in the backends.
        """
        drawn = self.draw(image, data_sample, draw_gt, draw_pred)
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            path = Path(out_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            done, data = cv2.imencode(path.suffix or ".png", drawn[..., ::-1])
            if not done:
                raise OSError(f"out_file={out_file!r} cannot be written")
            write_whole(path, data.tobytes())
        elif not show:
            self.add_image(name, drawn, step)

    def draw(
        self,
        image: np.ndarray,
        data_sample: BaseDataElement | None,
        draw_gt: bool = True,
        draw_pred: bool = True,
    ) -> np.ndarray:
        """Draw a sample into one figure.

        Args:
            image: ``(H, W, 3)`` uint8 in RGB.
            data_sample: sample as in :meth:`add_datasample`. Its maps may have another size than
                the image; they are drawn in the size of the image.
            draw_gt: draw the ground truth.
            draw_pred: draw the predictions.

        Returns:
            ``(height, width, 3)`` uint8 in RGB.
        """
        kinds = [kind for kind, wanted in (("truth", draw_gt), ("prediction", draw_pred)) if wanted]
        rows: dict[str, list] = {kind: [] for kind in kinds}
        for task in TASKS.values():
            maps = {kind: _map_of(data_sample, task, kind) for kind in kinds}
            if all(values is None for values in maps.values()):
                continue
            limits = _limits(maps) if task.name == "depth" else None
            span = f", {limits[0]:.1f} to {limits[1]:.1f} m" if limits else ""
            for kind, values in maps.items():
                panel = None
                if values is not None:
                    drawn = colour_map(task.name, values, self._palette(task), limits)
                    size = (image.shape[1], image.shape[0])
                    panel = cv2.resize(drawn, size, interpolation=cv2.INTER_NEAREST)
                words = _WORDS.get(task.name, task.name)
                title = f"{words}: {kind}{span}" if panel is not None else ""
                rows[kind].append((title, panel))
        filled = [row for row in rows.values() if any(panel is not None for _, panel in row)]
        first = np.ascontiguousarray(image)
        lines = [
            [("image", first) if index == 0 else ("", None), *row]
            for index, row in enumerate(filled or [[]])
        ]
        return tile_panels(lines)

    def _palette(self, task: Task) -> list | None:
        if task.name == "human_parts":
            return self.parts_palette
        return (self.dataset_meta or {}).get("palette")


def _map_of(sample: BaseDataElement | None, task: Task, kind: str) -> np.ndarray | None:
    """A map of a sample as an array, or ``None`` if the sample lacks it."""
    field = task.gt_field if kind == "truth" else task.pred_field
    data = None if sample is None else sample.get(field)
    if data is None:
        return None
    values = data.data
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _limits(maps: dict[str, np.ndarray | None]) -> tuple[float, float]:
    """Limits of the ground truth, or of the prediction if there is no ground truth."""
    first = next(values for values in maps.values() if values is not None)
    return depth_limits(first)
