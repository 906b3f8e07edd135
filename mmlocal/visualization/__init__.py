"""Pictures of models and runs. They need matplotlib and OpenCV, which MMEngine and mmcv install."""

from mmlocal.visualization.runs import contact_sheet, plot_curves, plot_spread

__all__ = ["contact_sheet", "plot_curves", "plot_spread"]
