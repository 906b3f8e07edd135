"""ELSA, involution and outlook attention by unfold, as the official codes write them.

Beside them, our layer of outlook attention and timm's layer, on the same weights.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from benchmarks.contestants import Built, CannotRunError, Contestant, op_tensors
from mmlocal.layers import OutlookAttention
from mmlocal.ops import OPS
from mmlocal.ops.cases import Case, Make


def elsa_by_unfold(
    value: Tensor,
    attn: Tensor,
    ghost_add: Tensor | None = None,
    *,
    kernel_size: int,
    softmax: bool,
) -> Tensor:
    """ELSA, or an involution, by an unfold of the values and a sum over taps.

    Args:
        value: values, as for :func:`mmlocal.ops.elsa_attention`.
        attn: logits or weights, as for :func:`mmlocal.ops.elsa_attention`.
        ghost_add: ghost head, as for :func:`mmlocal.ops.elsa_attention`.
        kernel_size: side of a window in pixels.
        softmax: whether ``attn`` passes a softmax.

    Returns:
        Output, as from :func:`mmlocal.ops.elsa_attention`.
    """
    batch, channels, *size = value.shape
    filters = attn.view(batch, -1, 1, kernel_size**2, *size)
    if softmax:
        filters = filters.softmax(dim=3)
    heads = filters.shape[1]
    if ghost_add is not None:
        filters = filters + ghost_add.view(heads, channels // heads, -1, 1, 1)
    windows = F.unfold(value, kernel_size, padding=kernel_size // 2)
    windows = windows.view(batch, heads, channels // heads, kernel_size**2, *size)
    return (filters * windows).sum(dim=3).view(value.shape)


def outlook_by_unfold(
    value: Tensor, attn: Tensor, *, num_heads: int, kernel_size: int, stride: int, padding: int
) -> Tensor:
    """Outlook attention by unfold, product of matrices and fold, as in the official code.

    Args:
        value: values, as for :func:`mmlocal.ops.outlook_attention`.
        attn: logits, as for :func:`mmlocal.ops.outlook_attention`.
        num_heads: number of heads.
        kernel_size: side of a window in pixels.
        stride: step between windows in pixels.
        padding: pixels by which the first window begins outside the map.

    Returns:
        Output, as from :func:`mmlocal.ops.outlook_attention`.
    """
    taps = kernel_size**2
    settings: dict = dict(kernel_size=kernel_size, padding=padding, stride=stride)
    maps = attn.flatten(2).unflatten(1, (num_heads, taps, taps)).permute(0, 1, 4, 2, 3)
    windows = F.unfold(value, **settings).unflatten(1, (num_heads, -1, taps))
    out = maps.softmax(dim=4) @ windows.permute(0, 1, 4, 3, 2)
    out = out.permute(0, 1, 4, 3, 2).flatten(1, 3)
    return F.fold(out, list(value.shape[2:]), **settings)


def _unfold(case: Case, make: Make) -> Built:
    function = {"elsa": elsa_by_unfold, "outlook": outlook_by_unfold}[case.op]
    settings = OPS[case.op].load_analysis().settings(case)
    return op_tensors(case, make), partial(function, **settings)


def _outlook_layer(of_timm: bool, case: Case, make: Make) -> Built:
    """The whole layer with its projections, on the same weights for both libraries."""
    k = case.kernel_size
    settings = dict(kernel_size=k, stride=case.stride, padding=k // 2)
    if of_timm:
        if importlib.util.find_spec("timm") is None:
            raise CannotRunError("timm is not installed")
        kind = importlib.import_module("timm.models.volo").OutlookAttention
    else:
        kind = OutlookAttention
    x = make(case.batch, case.channels, case.height, case.width)
    layer = kind(case.channels, case.heads, **settings).to(x.device, x.dtype)
    weights = {name: make(*w.shape) for name, w in layer.state_dict().items()}

    def run(x: Tensor, **weights: Tensor) -> Tensor:
        named = {name.replace("_", "."): w for name, w in weights.items()}
        return functional_call(layer, named, (x.permute(0, 2, 3, 1),)).permute(0, 3, 1, 2)

    return dict(x=x) | {name.replace(".", "_"): w for name, w in weights.items()}, run


UNFOLD_PEERS = (
    Contestant("unfold", "unfold, product, and sum or fold", _unfold, ("elsa", "outlook")),
    Contestant(
        "layer", "our layer with its projections", partial(_outlook_layer, False), ("outlook",)
    ),
    Contestant(
        "timm_layer",
        "timm's layer with its projections",
        partial(_outlook_layer, True),
        ("outlook",),
    ),
)
