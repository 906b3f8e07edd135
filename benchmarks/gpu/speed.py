"""Time the ops beside their peers, at the shapes of published models."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial

import torch

from benchmarks.check import WrongResultError, check_backend
from benchmarks.contest import measure_case
from benchmarks.contestants import Built, Contestant, list_backends, make_tensors, op_tensors
from benchmarks.gpu.isolated import Item
from benchmarks.gpu.kernel_times import kernel_times
from benchmarks.peers import PEERS
from mmlocal.analysis.measure import summarise, time_interleaved
from mmlocal.ops import OPS, elsa_attention_projected
from mmlocal.ops.cases import Case, Make

# Op, pattern for names of its cases, and images in a batch. The most important ones come first. A
# batch is so large that its maps do not fit into the cache.
_SHAPES = (
    ("elsa", r"ELSA-Swin tiny .*224x224", 64),
    ("qna", r"QnA-ViT tiny = .*(1|1 down|2|3) at 224x224", 64),
    ("neighborhood", r".*stage [13] at 224x224", 64),
    ("outlook", r"VOLO d1, .*224x224", 64),
    ("deformable", r"NYUD-v2", 1),
    ("elsa", r"ELSA-Swin tiny .*stage 1 at 800x1280", 4),
    ("qna", r"QnA-ViT tiny_7x7, stage 1 at 224x224", 64),
)
_BACKENDS = ("triton", "eager")
_PEERS = ("unfold", "exp_conv", "sasa_unfold", "from_offsets", "swin", "dwconv", "natten")
_ROUNDS = 10


def shape_items(device: str, tiny: bool) -> list[Item]:
    """List the checks of all shapes that :func:`speed_items` times, with measured configurations.

    Several may run at a time. They leave the compiled kernels in Triton's cache.

    Args:
        device: device of the tensors.
        tiny: whether to take the sizes for Triton's interpreter.
    """
    return [
        Item(f"{_title(case, dtype)}", partial(check, case, dtype, device), seconds=120)
        for case, dtype in _runs(tiny)
    ]


def speed_items(device: str, tiny: bool) -> list[Item]:
    """List the ceilings of the GPU, and each shape in bfloat16, then in float32.

    Args:
        device: device of the tensors.
        tiny: whether to take the sizes for Triton's interpreter.
    """
    rounds = 1 if tiny else _ROUNDS
    return [Item("ceilings", partial(measure_ceilings, device, 2**8 if tiny else 2**13))] + [
        Item(_title(case, dtype), partial(measure, case, dtype, device, _BACKENDS, _PEERS, rounds))
        for case, dtype in _runs(tiny)
    ]


def flex_items(device: str, tiny: bool) -> list[Item]:
    """List the shapes on which FlexAttention, which has to be compiled, is timed.

    Args:
        device: device of the tensors.
        tiny: whether this is a rehearsal, which leaves FlexAttention out.
    """
    runs = [] if tiny else [(c, t) for c, t in _runs(tiny) if t == torch.bfloat16]
    return [
        Item(
            f"{_title(case, dtype)}, flex",
            partial(measure, case, dtype, device, _BACKENDS[:1], ("flex",), _ROUNDS),
        )
        for case, dtype in runs
        if case.op in ("elsa", "neighborhood") and re.match(r".*stage [13] at 224", case.name)
    ]


def measure_ceilings(device: str, side: int) -> Iterator[dict]:
    """Measure the rates of a large copy and of a matrix product.

    Args:
        device: device of the tensors.
        side: side of the square matrices.

    Yields:
        Two rows: ``bytes_per_second`` of the copy, which reads and writes, and
        ``flops_per_second`` of the product in bfloat16.
    """
    source = torch.randn(16 * side * side, device=device)  # 4.3 GB for a side of 8192
    target = torch.empty_like(source)
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    calls = {"copy": lambda: target.copy_(source), "matrix product": lambda: matrix @ matrix}
    for call in calls.values():
        call()
    samples = time_interleaved(calls, torch.device(device), rounds=5)
    seconds = {name: statistics.median(times) for name, times in samples.items()}
    yield dict(
        contestant="copy",
        bytes_per_second=2 * source.nbytes / seconds["copy"],
        **summarise(samples["copy"]),
    )
    yield dict(
        contestant="matrix product",
        flops_per_second=2 * side**3 / seconds["matrix product"],
        **summarise(samples["matrix product"]),
    )


def check(case: Case, dtype: torch.dtype, device: str) -> Iterator[dict]:
    """Check the Triton kernels on one shape.

    Args:
        case: shape of the op.
        dtype: data type of the tensors.
        device: device of the tensors.

    Yields:
        One row: ``passed``, and the reason in ``wrong`` if it is false.
    """
    triton = next(b for b in OPS[case.op].backends if b.name == "triton")
    try:
        check_backend(triton, case, dtype, torch.device(device))
    except WrongResultError as error:
        yield dict(passed=False, wrong=str(error))
    else:
        yield dict(passed=True)


def measure(
    case: Case,
    dtype: torch.dtype,
    device: str,
    backends: Sequence[str],
    peers: Sequence[str],
    rounds: int,
) -> Iterator[dict]:
    """Time the Triton kernels on a shape beside others.

    Args:
        case: shape of the op.
        dtype: data type of the tensors.
        device: device of the tensors.
        backends: names of backends of the op.
        peers: names of peers, of which those run that stand beside the op.
        rounds: number of samples of each time.

    Yields:
        The rows of :func:`benchmarks.contest.measure_case`. Rows of Triton kernels also have
        ``kernels``, the milliseconds of each kernel on the GPU, and their sum ``kernel_ms``.
    """
    target = torch.device(device)
    ours = _ours(case, backends)
    contestants = [("backend", c) for c in ours]
    contestants += [("peer", p) for p in PEERS if p.name in peers and p.stands_beside(case.op)]
    about = dict(case=asdict(case), dtype=str(dtype)[6:])
    kernels = {c.name: _kernel_times(c, case, dtype, device) for c in ours if c.name != "eager"}
    for row in measure_case(case, contestants, dtype, target, rounds):
        if row["contestant"] in kernels and "skipped" not in row:
            times = kernels[row["contestant"]][row["mode"]]
            row |= dict(kernels=times, kernel_ms=sum(times.values()))
        yield about | row


def _kernel_times(contestant: Contestant, case: Case, dtype: torch.dtype, device: str) -> dict:
    """Milliseconds by mode and kernel."""
    tensors, function = contestant.build(case, make_tensors(device, dtype))
    leaves = list(tensors.values())
    cotangent = torch.randn_like(function(**tensors))

    def training() -> None:
        torch.autograd.grad(function(**tensors), leaves, cotangent)

    training()
    with torch.no_grad():
        forward = kernel_times(lambda: function(**tensors))
    return dict(forward=forward, training=kernel_times(training))


def _projected(case: Case, make: Make) -> Built:
    """ELSA as its layer calls it on a GPU: the kernels compute the logits from features."""
    tensors = op_tensors(case, make)
    logits = tensors.pop("attn").shape[1]
    dims = -(-2 * (case.channels // 3) // 8) * 8
    tensors["features"] = make(case.batch, dims, case.height, case.width)
    tensors["proj_weight"] = (make(logits, dims).detach() / dims**0.5).requires_grad_()
    tensors["proj_bias"] = make(logits)
    call = partial(elsa_attention_projected, kernel_size=case.kernel_size)
    return tensors, call


def _ours(case: Case, backends: Sequence[str]) -> list[Contestant]:
    found = [c for c in list_backends(case.op) if c.name in backends]
    if case.op == "elsa" and not case.variant:
        about = "triton, with the projection to logits inside"
        found.append(Contestant("projected", about, _projected, ("elsa",)))
    return found


def _title(case: Case, dtype: torch.dtype) -> str:
    return f"{case.op}, {case.name}, {str(dtype)[6:]}"


def _runs(tiny: bool) -> list[tuple[Case, torch.dtype]]:
    if tiny:
        return [(case, torch.bfloat16) for case in _tiny_cases()]
    cases = []
    for op, pattern, batch in _SHAPES:
        sets = OPS[op].load_analysis().CASES
        found = sets.get("stages") or sets["tasks"]
        cases += [replace(c, batch=batch) for c in found if re.match(pattern, c.name)]
    return [(case, dtype) for dtype in (torch.bfloat16, torch.float32) for case in cases]


def _tiny_cases() -> list[Case]:
    """Maps of a few pixels, of the op that takes the interpreter the least time."""
    case = OPS["deformable"].load_analysis().CASES["smoke"][0]
    small = dict(batch=1, channels=4, heads=1, height=2, width=2, variant="1 tasks, 1 levels")
    return [replace(case, **small)]
