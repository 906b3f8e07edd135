"""Pictures of models and runs. They need matplotlib and OpenCV, which MMEngine and mmcv install."""

from mmlocal.visualization.multitask_visualizer import MultiTaskVisualizer
from mmlocal.visualization.runs import contact_sheet, plot_curves, plot_spread

__all__ = ["MultiTaskVisualizer", "contact_sheet", "plot_curves", "plot_spread"]
