"""Random calls of the ops, and the comparison of a backend's results with the definition's."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmlocal.ops import OPS, deformable_attention_from_offsets
from mmlocal.ops.backends import Backend
from mmlocal.ops.deformable import reference as deformable_reference
from mmlocal.ops.elsa import reference as elsa_reference
from mmlocal.ops.layout import new_map
from mmlocal.ops.outlook import reference as outlook_reference
from mmlocal.ops.qna import attention_maps
from mmlocal.ops.qna import reference as qna_reference

FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels-last", "sliced", "transposed", "expanded"]


@dataclass
class Problem:
    """One call: its tensors, its settings, and which gradients are asked for."""

    op: str
    seed: int
    tensors: dict[str, Tensor]
    settings: dict
    live: list[str]
    cotangent: Tensor
    notes: dict = field(default_factory=dict)

    @property
    def first(self) -> Tensor:
        """The tensor that decides the dtype and the layout of the output."""
        return next(iter(self.tensors.values()))

    def run(self, backend: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Return output and gradients, computed in ``dtype`` if it is given."""
        tensors = {n: x.detach() for n, x in self.tensors.items()}
        if dtype is not None:  # start from float32 numbers, as a backend does
            if self.first.dtype != torch.float64:
                tensors = {n: x.float() for n, x in tensors.items()}
            tensors = {n: x.to(dtype) for n, x in tensors.items()}
        tensors = {n: x.requires_grad_(n in self.live) for n, x in tensors.items()}
        out = FUNCTIONS[self.op](**tensors, **self.settings, backend=backend)
        results = {"out": out.detach()}
        if self.live:
            leaves = [tensors[name] for name in self.live]
            grads = torch.autograd.grad(out, leaves, self.cotangent.to(out.dtype))
            results |= {f"grad of {n}": g for n, g in zip(self.live, grads, strict=True)}
        return results

    def tolerance(self, backend: str, result: Tensor) -> float:
        """Return the tolerance for the dtype of the first tensor or of the result.

        The larger one counts.
        """
        chosen = next(b for b in backends_of(self.op) if b.name == backend)
        position = _largest(self.tensors["rel_pos"]) if "rel_pos" in self.tensors else 0.0
        dtypes = {self.first.dtype, result.dtype}
        # Entries above 16 leave fewer digits to the exponents that they are added to.
        return max(chosen.atol[dtype] for dtype in dtypes) * max(1.0, position / 16)

    @functools.cached_property
    def magnitudes(self) -> dict[str, float]:
        """The largest sum of the magnitudes of its terms, by gradient.

        This is for gradients that pass through the softmax. They are differences, and may be far
        smaller than their terms.
        """
        if self.op.startswith("deformable"):
            return self._magnitudes_of_samples()
        by_rows = self.op in ("elsa", "outlook")
        through = {"attn"} if by_rows and self.settings["softmax"] else set()
        through |= {"scores", "rel_pos"} if self.op == "qna" else set()
        if not through & set(self.live) or not self.cotangent.numel():
            return {}
        tensors = {n: x.detach().double() for n, x in self.tensors.items()}
        value, cotangent = tensors["value"].abs(), self.cotangent.double().abs()
        if by_rows:
            k = self.settings["kernel_size"]
            weights = tensors["attn"].unflatten(1, (-1, k * k)).softmax(dim=2).requires_grad_()
            if self.op == "elsa":
                lam, step = self.settings["lam"], min(self.settings["dilation"], 1000)
                mul = tensors["ghost_mul"].abs() ** lam if lam else None
                out = elsa_reference.forward(
                    value, weights.flatten(1, 2), mul, None, k, step, False
                )
            else:
                heads, padding = self.settings["num_heads"], self.settings["padding"]
                step = min(self.settings["stride"], 1000)
                out = outlook_reference.forward(
                    value, weights.flatten(1, 2), heads, k, step, padding, False
                )
            (slopes,) = torch.autograd.grad(out, weights, cotangent)
            slopes = weights.detach() * slopes
            terms = slopes + weights.detach() * slopes.sum(dim=2, keepdim=True)
            return {"grad of attn": _largest(terms)}
        queries, k, stride, padding = (
            self.settings[n] for n in ("num_queries", "kernel_size", "stride", "padding")
        )
        stride = min(stride, 1000)
        attn = attention_maps(
            tensors["scores"], tensors.get("rel_pos"), queries, k, stride, padding
        )
        windows = qna_reference._windows(value, 0.0, k, stride, padding)
        windows = windows.reshape(len(value), 1, attn.shape[2], -1, k * k, *attn.shape[4:])
        size = (len(value), -1 if self.settings["sum_queries"] is False else 1)
        cotangent = cotangent.reshape(*size, attn.shape[2], windows.shape[3], 1, *attn.shape[4:])
        slopes = (windows * cotangent).sum(dim=3)
        if "tap_weight" in tensors:
            slopes = slopes * tensors["tap_weight"].abs().reshape(1, *attn.shape[1:4], 1, 1)
        slopes = attn * slopes
        terms = slopes + attn * slopes.sum(dim=3, keepdim=True)
        scores = tensors["scores"].requires_grad_()
        own = qna_reference._windows(scores, 0.0, k, stride, padding)
        (folded,) = torch.autograd.grad(own, scores, terms.reshape(own.shape))
        return {
            "grad of scores": _largest(folded),
            "grad of rel_pos": _largest(terms.sum((0, 4, 5))),
        }

    def _magnitudes_of_samples(self) -> dict[str, float]:
        """Return the magnitudes for deformable attention, whose gradients are differences."""
        if not self.live or not self.cotangent.numel():
            return {}
        value, *_, positions, weights = (x.detach().double() for x in self.tensors.values())
        sizes = torch.tensor(self.settings["spatial_shapes"]).double().flip(1)[:, None]
        fused = len(self.tensors) == 4
        if fused:
            centres = self.tensors["reference_points"].double()[:, :, None, :, None]
            positions = centres + positions / sizes
            weights = weights.flatten(3).softmax(dim=3).view(weights.shape)
        weights = weights.abs().requires_grad_()
        shapes = [side for pair in self.settings["spatial_shapes"] for side in pair]
        out = deformable_reference.forward(value.abs(), positions, weights, shapes, "border")
        (slopes,) = torch.autograd.grad(out, weights, self.cotangent.double().abs())
        slopes = slopes * weights.detach()
        # A step of one pixel may go from one of these values to the other.
        moved = slopes[..., None] * (1 if fused else sizes)
        if not fused:
            return {"grad of sampling_locations": _largest(moved)}
        terms = slopes + weights.detach() * slopes.sum(dim=(3, 4), keepdim=True)
        points = (moved * sizes).sum(dim=(2, 4))
        shape = self.tensors["reference_points"].shape
        return {
            "grad of sampling_offsets": _largest(moved),
            "grad of attention_logits": _largest(terms),
            "grad of reference_points": _largest(points.sum_to_size(shape)),
        }

    def __str__(self) -> str:
        shapes = {n: (*x.shape, str(x.dtype)[6:]) for n, x in self.tensors.items()}
        return f"{self.op} {self.seed}: {shapes} {self.settings} {self.live} {self.notes}"


def _largest(x: Tensor) -> float:
    """Return the largest magnitude of the finite numbers, or 0 if there are none."""
    finite = x[x.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def _arrange(x: Tensor, layout: str) -> Tensor:
    if layout == "channels-last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if x.dim() == 1 and layout in ("sliced", "transposed"):
        return torch.stack((x, x), dim=1)[:, 1]
    if layout == "sliced":
        return torch.cat((x, x), dim=1)[:, x.shape[1] :]
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "expanded" and len(x):
        return x[:1].expand(x.shape)
    return x


class _Source:
    """Random numbers, choices and tensors from one seed."""

    def __init__(self, seed: int) -> None:
        self.choose = random.Random(seed)
        self.numbers = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.numbers, dtype=torch.float64)

    def put(self, x: Tensor, numbers: list[float]) -> Tensor:
        """Return ``x`` with one to three random places replaced by some of ``numbers``."""
        x = x.clone()
        for _ in range(self.choose.randint(1, 3)):
            x.view(-1)[self.choose.randrange(x.numel())] = self.choose.choice(numbers)
        return x


def _elsa(pick: random.Random, k: int, size: tuple[int, ...], channels: int) -> tuple[dict, dict]:
    """Return shapes by tensor, and settings. ``size`` is batch, heads, height and width."""
    k += k % 2 == 0
    batch, heads, *sides = size
    lam, gamma = pick.choice([(0, 0), (0, 1), (1, 0), (1, 1), (1, 1), (0.5, 2.0), (2, -0.5)])
    settings = dict(
        kernel_size=k,
        dilation=pick.choice([1, 1, 1, 2, 3, 40, 2**62]),
        lam=lam,
        gamma=gamma,
        softmax=pick.random() < 0.75,
    )
    shapes = {"value": (batch, channels, *sides), "attn": (batch, heads * k * k, *sides)}
    shapes |= {"ghost_mul": (channels, k, k)} if lam else {}
    shapes |= {"ghost_add": (channels, k, k)} if gamma else {}
    return shapes, settings


def _qna(pick: random.Random, k: int, size: tuple[int, ...], channels: int) -> tuple[dict, dict]:
    """Return shapes by tensor, and settings. ``size`` is batch, heads, height and width."""
    queries, padding = pick.choice([1, 2, 2, 3]), pick.randrange(k)
    batch, heads, *sides = size
    sides = [max(side, k - 2 * padding) for side in sides]
    settings = dict(
        num_queries=queries,
        kernel_size=k,
        stride=pick.choice([1, 1, 1, 2, 3, 5, 2**62]),
        padding=padding,
        sum_queries=pick.random() < 0.7,
    )
    shapes = {"value": (batch, channels, *sides), "scores": (batch, queries * heads, *sides)}
    shapes |= {"rel_pos": (queries * heads, k, k)} if pick.random() < 0.6 else {}
    shapes |= {"tap_weight": (queries * heads, k, k)} if pick.random() < 0.6 else {}
    return shapes, settings


def _outlook(
    pick: random.Random, k: int, size: tuple[int, ...], channels: int
) -> tuple[dict, dict]:
    """Return shapes by tensor, and settings. ``size`` is batch, heads, height and width."""
    k = min(k, 5)  # a window has k**4 numbers
    batch, heads, *sides = size
    padding = pick.randrange(k)
    stride = pick.choice([1, 2, 2, 2, 3, 5, 2**62])
    sides = [max(side, k - 2 * padding) for side in sides]
    windows = [(side + 2 * padding - k) // stride + 1 for side in sides]
    settings = dict(
        num_heads=heads,
        kernel_size=k,
        stride=stride,
        padding=padding,
        softmax=pick.random() < 0.75,
    )
    shapes = {"value": (batch, channels, *sides), "attn": (batch, heads * k**4, *windows)}
    return shapes, settings


def _neighborhood(
    pick: random.Random, k: int, size: tuple[int, ...], channels: int
) -> tuple[dict, dict]:
    """Return shapes by tensor, and settings. ``size`` is batch, heads, height and width."""
    batch, heads, *sides = size
    settings = dict(
        num_heads=heads,
        kernel_size=k + (k % 2 == 0),
        dilation=pick.choice([1, 1, 1, 2, 3, 40, 2**62]),
        border=pick.choice(["zero", "mask"]),
    )
    return dict.fromkeys(("query", "key"), (batch, channels, *sides)), settings


def _deformable(
    pick: random.Random, k: int, size: tuple[int, ...], channels: int
) -> tuple[dict, dict]:
    """Return shapes by tensor, and settings. ``size`` is batch, heads, height and width."""
    batch, heads, *sides = size
    shapes = [tuple(pick.randint(1, n) for n in sides) for _ in range(pick.choice([1, 2, 3, 6]))]
    samples = (batch, pick.choice([1, 2, 7, 19]), heads, len(shapes), pick.choice([k, 4, 16, 18]))
    settings = dict(spatial_shapes=shapes, padding_mode=pick.choice(["zeros", "border"]))
    value = (batch, sum(h * w for h, w in shapes), heads, channels // heads)
    tensors = {"value": value, "sampling_locations": (*samples, 2), "attention_weights": samples}
    return tensors, settings


def _deformable_from_offsets(
    pick: random.Random, k: int, size: tuple[int, ...], channels: int
) -> tuple[dict, dict]:
    """Return shapes by tensor, and settings. ``size`` is batch, heads, height and width."""
    tensors, settings = _deformable(pick, k, size, channels)
    value, _, samples = tensors.values()
    batch, queries, _, maps, _ = samples
    points = (pick.choice([batch, 1]), queries, pick.choice([maps, 1]), 2)
    tensors = {
        "value": value,
        "reference_points": points,
        "sampling_offsets": (*samples, 2),
        "attention_logits": samples,
    }
    return tensors, settings


def _convolution(
    pick: random.Random, k: int, size: tuple[int, ...], channels: int
) -> tuple[dict, dict]:
    """Return shapes by tensor, and settings. ``size`` is batch, groups, height and width."""
    batch, groups, *sides = size
    dilation, padding = pick.choice([1, 1, 1, 2, 3]), pick.choice([0, k // 2, k // 2, k + 1])
    reach = dilation * (k - 1)
    sides = [max(side, reach + 1 - 2 * padding) for side in sides]
    shapes = {"x": (batch, 4 * groups, *sides), "weight": (4 * groups, 4, k, k)}
    shapes |= {"bias": (4 * groups,)} if pick.random() < 0.6 else {}
    return shapes, dict(padding=padding, dilation=dilation, groups=groups)


# The generator of each op's shapes and settings. A new op needs one here.
MAKE = {
    "convolution": _convolution,
    "deformable": _deformable,
    "deformable_from_offsets": _deformable_from_offsets,
    "elsa": _elsa,
    "neighborhood": _neighborhood,
    "outlook": _outlook,
    "qna": _qna,
}
# The function of each generator.
FUNCTIONS = {name: op.function for name, op in OPS.items()} | {
    "deformable_from_offsets": deformable_attention_from_offsets
}
# The gradient by a position jumps from one pixel to the next. So positions are such multiples that
# float32 leaves them on the same side.
STEPS = {"sampling_locations": 2**-8, "reference_points": 2**-8, "sampling_offsets": 2**-8}


# Tensors that the function expands before the operator sees them. Autograd adds up their gradients.
EXPANDED = {"reference_points"}


def backends_of(op: str) -> tuple[Backend, ...]:
    """Return the backends of a key of ``MAKE``."""
    return OPS[op.partition("_")[0]].backends


# Ops whose tensors must have one dtype.
ONE_DTYPE = {"convolution", "neighborhood"}


def make_problem(op: str, seed: int, limit: int = 13) -> Problem:
    """Return the problem of a seed. ``limit`` bounds kernel, map and channels."""
    source = _Source(seed)
    pick = source.choose
    k = pick.choice([n for n in (1, 2, 3, 3, 3, 4, 5, 7, 9, 13) if n <= limit])
    heads, per_head = (
        pick.choice([n for n in choices if n <= 3 * limit])
        for choices in ([1, 1, 2, 3, 5], [1, 2, 3, 4, 8, 9, 17, 33])
    )
    batch = pick.choice([0, 1, 1, 2, 3])
    height, width = pick.randint(1, limit), pick.randint(1, limit + limit // 2)
    shapes, settings = MAKE[op](pick, k, (batch, heads, height, width), heads * per_head)

    dtype = pick.choice(FLOATS)
    mixed = pick.random() < 0.2 and op not in ONE_DTYPE
    layout = pick.choice(LAYOUTS)
    tensors = {}
    for name, shape in shapes.items():
        factor = pick.choice([1, 1, 1, 1, 0.01, 10, 100, 1e4])
        x = source.randn(*shape) * factor
        if settings.get("lam") == 0.5 and name == "ghost_mul":
            x = x.abs() + 0.01
        if name in STEPS:
            x = (x / STEPS[name]).round() * STEPS[name]
        x = x.to(pick.choice(FLOATS) if mixed else dtype)
        tensors[name] = _arrange(x, layout if x.dim() == 4 or layout != "channels-last" else "")
    with torch.no_grad():
        out = FUNCTIONS[op](**{n: x.to("meta") for n, x in tensors.items()}, **settings)
    cotangent = source.randn(*out.shape).to(out.dtype)
    notes = {"layout": layout}
    if batch and pick.random() < 0.35:
        name = pick.choice([*tensors, "cotangent"])
        notes["not finite"] = name
        numbers = [math.nan, math.inf, -math.inf]
        if name == "cotangent":
            cotangent = source.put(cotangent, numbers)
        else:
            tensors[name] = source.put(tensors[name].contiguous(), numbers)
    live = [name for name in tensors if pick.random() < 0.8]
    return Problem(op, seed, tensors, settings, live, cotangent, notes)


def differences(problem: Problem, backend: str, exact: dict[str, Tensor]) -> list[str]:
    """Describe the results that differ from the definition. The list is empty if all agree.

    A number that the dtype of the result cannot hold may be infinite or finite.
    """
    found, magnitudes = [], problem.magnitudes
    tables = set(OPS[problem.op.partition("_")[0]].tables)
    for name, x in problem.run(backend).items():
        expected = exact[name]
        if x.shape != expected.shape:
            found.append(f"{name}: shape {tuple(x.shape)}, not {tuple(expected.shape)}")
            continue
        own = name.removeprefix("grad of ")
        like = problem.first if name == "out" else problem.tensors[own]
        is_map = like.dim() == x.dim() == 4 and own not in EXPANDED | tables
        if backend != "reference" and is_map and x.numel():
            promised = new_map(like, x.shape).stride()
            if x.stride() != promised:
                found.append(f"{name}: strides {x.stride()}, fake ones {promised}")
        finite = expected.isfinite()
        fits = ~finite | (expected.abs() < torch.finfo(x.dtype).max / 2)
        hidden = (~finite & x.isfinite()).sum().item()
        spread = (finite & fits & ~x.isfinite()).sum().item()
        if hidden or spread:
            found.append(f"{name}: {hidden} finite, {spread} not finite, that should not be so")
        infinite = expected.isinf() & x.isinf()
        if (x.double() * expected < 0)[infinite].any():
            found.append(f"{name}: infinities of the wrong sign")
        both = finite & fits & x.isfinite()
        if both.any():
            error = (x.double() - expected)[both].abs().max().item()
            largest = max(_largest(expected), magnitudes.get(name, 0.0))
            limit = problem.tolerance(backend, x) * (largest if largest > 1e-12 else 1.0)
            # The result is rounded to whole multiples of the smallest number.
            if error > limit + torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps:
                found.append(f"{name}: error {error:.1e}, largest {largest:.1e}")
    return found
