"""Cases and helpers that the tests of all ops share."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mmlocal.ops.backends import Backend

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of a backward operator. Its autograd is part of what opcheck does with the operator itself.
BACKWARD_CHECKS = dict(test_utils=("test_schema", "test_faketensor"))


def running(backends: tuple[Backend, ...]) -> list[Backend]:
    """Return the backends that take CPU tensors here. test_triton.py runs the Triton backend."""
    return [b for b in backends if not b.not_supported_reasons(torch.empty(0))]


# ------------------------------------------------------------------------------- calls of the ops


def _randn(seed: int) -> Callable[..., Tensor]:
    g = torch.Generator().manual_seed(seed)
    return lambda *size: torch.randn(*size, generator=g, dtype=torch.float64)


def make_elsa(shape, ghost=(1, 1), dtype=torch.float64, seed=0) -> tuple[dict, dict]:
    """Return leaf tensors and settings of ``elsa_attention``.

    The multiplicative ghost head is positive if ``lam`` is not an integer.

    Args:
        shape: batch, heads, channels per head, height, width, kernel, dilation.
        ghost: ``lam`` and ``gamma``. If one is 0, its table is left out.
        dtype: dtype of all tensors.
        seed: seed of the random numbers.
    """
    batch, heads, per_head, height, width, k, dilation = shape
    lam, gamma = ghost
    randn, channels = _randn(seed), heads * per_head
    tensors = {
        "value": randn(batch, channels, height, width),
        "attn": randn(batch, heads * k * k, height, width),
    }
    if lam:
        tensors["ghost_mul"] = randn(channels, k, k)
        if lam != int(lam):
            tensors["ghost_mul"] = tensors["ghost_mul"].abs() + 0.1
    if gamma:
        tensors["ghost_add"] = randn(channels, k, k)
    return leaves(tensors, dtype), dict(kernel_size=k, dilation=dilation, lam=lam, gamma=gamma)


def make_projected(shape, switches, dims: int, dtype=torch.float64) -> tuple[dict, dict]:
    """Return leaf tensors and settings of ``elsa_attention_projected``.

    Args:
        shape: batch, heads, channels per head, height, width, kernel, dilation.
        switches: ``lam``, ``gamma``, and whether there is a bias.
        dims: channels of the features.
        dtype: dtype of all tensors.
    """
    *ghost, bias = switches
    tensors, settings = make_elsa(shape, ghost)
    batch, heads, _, height, width, k, _ = shape
    randn = _randn(1)
    projection = {
        "features": randn(batch, dims, height, width),
        "proj_weight": randn(heads * k * k, dims) / dims**0.5,
    }
    if bias:
        projection["proj_bias"] = randn(heads * k * k)
    ghosts = {n: x for n, x in tensors.items() if n.startswith("ghost")}
    return leaves({"value": tensors["value"]} | projection | ghosts, dtype), settings


def make_qna(shape, tables=(True, True), dtype=torch.float64, seed=0) -> tuple[dict, dict]:
    """Return leaf tensors and settings of ``qna_attention``.

    Args:
        shape: batch, heads, channels per head, height, width, kernel, stride, padding, queries.
        tables: whether to make ``rel_pos``, and whether to make ``tap_weight``.
        dtype: dtype of all tensors.
        seed: seed of the random numbers.
    """
    batch, heads, per_head, height, width, k, stride, padding, queries = shape
    randn = _randn(seed)
    tensors = {
        "value": randn(batch, heads * per_head, height, width),
        "scores": randn(batch, queries * heads, height, width),
    }
    for name, there in zip(("rel_pos", "tap_weight"), tables, strict=True):
        if there:
            tensors[name] = randn(queries * heads, k, k)
    settings = dict(num_queries=queries, kernel_size=k, stride=stride, padding=padding)
    return leaves(tensors, dtype), settings


def make_outlook(shape, dtype=torch.float64, seed=0) -> tuple[dict, dict]:
    """Return leaf tensors and settings of ``outlook_attention``.

    Args:
        shape: batch, heads, channels per head, height, width, kernel, stride, padding.
        dtype: dtype of both tensors.
        seed: seed of the random numbers.
    """
    batch, heads, per_head, height, width, k, stride, padding = shape
    randn = _randn(seed)
    windows = [(side + 2 * padding - k) // stride + 1 for side in (height, width)]
    tensors = {
        "value": randn(batch, heads * per_head, height, width),
        "attn": randn(batch, heads * k**4, *windows),
    }
    settings = dict(num_heads=heads, kernel_size=k, stride=stride, padding=padding)
    return leaves(tensors, dtype), settings


def make_neighborhood(shape, border="zero", dtype=torch.float64, seed=0) -> tuple[dict, dict]:
    """Return leaf tensors and settings of ``neighborhood_scores``.

    Args:
        shape: batch, heads, channels per head, height, width, kernel, dilation.
        border: score of taps outside the map.
        dtype: dtype of both tensors.
        seed: seed of the random numbers.
    """
    batch, heads, per_head, height, width, k, dilation = shape
    randn = _randn(seed)
    tensors = {name: randn(batch, heads * per_head, height, width) for name in ("query", "key")}
    settings = dict(num_heads=heads, kernel_size=k, dilation=dilation, border=border)
    return leaves(tensors, dtype), settings


def make_convolution(shape, bias=True, dtype=torch.float64, seed=0) -> tuple[dict, dict]:
    """Return leaf tensors and settings of ``grouped_conv2d``.

    Args:
        shape: batch, groups, height, width, kernel, padding, dilation.
        bias: whether there is a bias.
        dtype: dtype of all tensors.
        seed: seed of the random numbers.
    """
    batch, groups, height, width, k, padding, dilation = shape
    randn = _randn(seed)
    tensors = {
        "x": randn(batch, 4 * groups, height, width),
        "weight": randn(4 * groups, 4, k, k),
    }
    if bias:
        tensors["bias"] = randn(4 * groups)
    return leaves(tensors, dtype), dict(padding=padding, dilation=dilation, groups=groups)


def make_deformable(shape, fused=False, dtype=torch.float64, seed=0) -> tuple[dict, dict]:
    """Return leaf tensors and settings of ``deformable_attention``, or of its fused form.

    Points lie in the maps and around them. A position in float32 is an exact number, so that
    rounding moves no point across a pixel.

    Args:
        shape: batch, queries, heads, channels per head, points, and pairs of height and width.
        fused: whether to make reference points, offsets and logits.
        dtype: dtype of all tensors.
        seed: seed of the random numbers.
    """
    batch, queries, heads, per_head, points, *shapes = shape
    randn = _randn(seed)

    def positions(*size: int) -> Tensor:
        return (randn(*size) * 64 + 0.5).floor() / 128 + 0.5

    value = randn(batch, sum(h * w for h, w in shapes), heads, per_head)
    size = (batch, queries, heads, len(shapes), points)
    if fused:
        tensors = {
            "value": value,
            "reference_points": positions(batch, queries, len(shapes), 2),
            "sampling_offsets": 4 * positions(*size, 2) + 1 / 16,
            "attention_logits": randn(*size),
        }
    else:
        tensors = {
            "value": value,
            "sampling_locations": positions(*size, 2),
            "attention_weights": randn(*size),
        }
    return leaves(tensors, dtype), dict(spatial_shapes=shapes)


def leaves(tensors: dict, dtype: torch.dtype | None = None, **changes) -> dict:
    """Return new leaf tensors with the same numbers. ``changes`` replaces some of them."""
    return {
        name: x.detach().to(dtype or x.dtype).clone().requires_grad_()
        for name, x in (tensors | changes).items()
    }


def restride(x: Tensor, layout: str) -> Tensor:
    """Return ``x`` in another memory format.

    ``"channels-last"`` leaves tables as they are. ``"expanded"`` changes the numbers: all samples
    of a map, or all taps of a table, become the same.
    """
    x = x.detach()
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if layout == "sliced":
        return torch.stack((x, x + 1), dim=-1)[..., 0]
    if layout == "transposed":
        return x.mT.contiguous().mT
    assert layout == "expanded"
    if x.dim() == 4:
        return x[:1].expand(len(x), -1, -1, -1)
    return x[:, :1, :1].expand(-1, *x.shape[1:])


# ------------------------------------------------------------------------------- and their results


def make_cotangent(out: Tensor) -> Tensor:
    """Return varied numbers in [-2, 2] that every dtype holds exactly."""
    return (torch.arange(out.numel()).view(out.shape) * 37 % 65 - 32).to(out.dtype) / 16


def run(op: Callable[..., Tensor], tensors: dict, settings: dict, **kwargs) -> dict[str, Tensor]:
    """Return the output, and the gradients of leaf tensors for one fixed cotangent."""
    out = op(**tensors, **settings, **kwargs)
    live = {name: x for name, x in tensors.items() if x.requires_grad}
    grads = torch.autograd.grad(out, list(live.values()), make_cotangent(out).to(out.device))
    return {"out": out.detach()} | {
        f"grad of {name}": grad for name, grad in zip(live, grads, strict=True)
    }


def worst_error(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest error of any tensor, relative to the tensor's largest value."""
    assert ours.keys() == expected.keys()
    errors = [0.0]
    for name, x in ours.items():
        ref = expected[name].double()
        assert x.shape == ref.shape, name
        assert x.isfinite().all(), name
        assert ref.isfinite().all(), name
        if ref.numel():
            # A gradient that should be 0, such as for the only token of a window, has an absolute
            # error.
            scale = ref.abs().max().item()
            errors.append((x.double() - ref).abs().max().item() / (scale if scale > 1e-12 else 1.0))
    return max(errors)


def peak_memory(function: Callable[[], object]) -> int:
    """Return the most bytes of CPU memory that ``function`` held at once.

    PyTorch records every allocation and release, so temporaries inside kernels count as well.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = function()
    del result
    # Only the trace shows each record. The profiler's tables add them up by operator.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        prof.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    events = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    events.sort(key=lambda event: event["ts"])
    return max(itertools.accumulate(event["args"]["Bytes"] for event in events))
