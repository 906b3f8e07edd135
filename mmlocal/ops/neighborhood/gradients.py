"""The gradients of the scores, which are sums that the ELSA op has without its softmax.

The gradient of a query weights the keys around it, as ELSA weights values. The gradient of a key
gathers the queries of the windows that hold it, as the gradient of a value does.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from mmlocal.ops.layout import to_layout


def gradients(
    elsa: ModuleType,
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    kernel_size: int,
    dilation: int,
    needs_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of ``query`` and ``key``, ``None`` where not needed.

    Args:
        elsa: backend of :func:`mmlocal.ops.elsa_attention`.
        grad: gradient of the scores. It is not read for taps outside the map.
        query: as in the forward pass.
        key: as in the forward pass.
        kernel_size: odd width of the window.
        dilation: distance between taps.
        needs_grad: which gradients are needed.
    """
    settings = (None, None, kernel_size, dilation, False)
    grad_query = grad_key = None
    if needs_grad[0]:
        grad_query = to_layout(elsa.forward(key, grad, *settings), query)
    if needs_grad[1]:
        needed = [True, False, False, False]
        grad_key = elsa.backward(query, key, grad, *settings, needed)[0]
    return grad_query, grad_key
