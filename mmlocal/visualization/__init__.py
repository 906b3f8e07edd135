"""Pictures of models and runs. They need matplotlib and OpenCV, which MMEngine and mmcv install."""

from mmlocal.visualization.multitask_visualizer import MultiTaskVisualizer
from mmlocal.visualization.palette import style_of
from mmlocal.visualization.panels import Panel, contact_sheet, draw_sheet
from mmlocal.visualization.runs import (
    Contender,
    Metric,
    plot_contenders,
    plot_curves,
    plot_metrics,
)

__all__ = [
    "Contender",
    "Metric",
    "MultiTaskVisualizer",
    "Panel",
    "contact_sheet",
    "draw_sheet",
    "plot_contenders",
    "plot_curves",
    "plot_metrics",
    "style_of",
]
