"""Export of models: to ONNX files, and to programs of plain PyTorch operators.

``torch.export.export`` keeps each op of :mod:`mmlocal.ops` as one node. ``torch.onnx.export`` gets
the same ops as plain operators, without any further argument. This package has what goes beyond:
:func:`plain_forms` for programs that have to run without mmlocal, :func:`prepare` for layers of
other libraries, and :func:`mmlocal.export.onnx_file.export_onnx` for files that are compared with
their model.
"""

from mmlocal.export.plain import plain_forms, prepare

__all__ = ["plain_forms", "prepare"]
