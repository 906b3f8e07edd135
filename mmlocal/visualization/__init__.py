"""Pictures of what a model does. Needs matplotlib and OpenCV, which the OpenMMLab stack brings."""

from mmlocal.visualization.runs import contact_sheet, plot_curves

__all__ = ["contact_sheet", "plot_curves"]
