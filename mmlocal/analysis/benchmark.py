"""Time and memory of our ops beside what a user would pick instead.

All contestants of a case run in one process and take turns, so that all of them see the same state
of the machine. A backend that misses its own tolerance is not timed.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from mmlocal.analysis.peers import (
    PEERS,
    SHAPES,
    CannotRunError,
    Case,
    Contestant,
    list_backends,
    make_tensors,
    op_function,
    op_tensors,
)
from mmlocal.checkpoints.files import write_whole
from mmlocal.errors import UsageError
from mmlocal.ops import OPS
from mmlocal.ops.backends import Backend
from mmlocal.version import __version__

MODES = ("forward", "training")
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# A sample is long enough for the clock: short calls are repeated.
_SAMPLE_SECONDS = 5e-3
_MAX_REPEATS = 100
# A contestant that has run for so long sits out the rounds that are left.
_MAX_SECONDS = 10.0
_MIN_SAMPLES = 3
_COPY_BYTES = 2**27  # larger than any cache
_COPY = "copy"
# Pixels in from the border that the check of a whole map compares.
_CORNER = 8


class WrongResultError(Exception):
    """A backend misses the tolerance that it declares."""


# ------------------------------------------------------------------------------------ measures


def choose_device(name: str | None) -> torch.device:
    """The named device, or the GPU if there is one.

    Raises:
        UsageError: a GPU is named and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: torch sees no GPU (python -m mmlocal.info), use --device cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _elapsed(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds per call."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats


def time_interleaved(
    calls: dict[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    """Time several functions in turns.

    Args:
        calls: functions by name, each called before at least once.
        device: where they run; on a GPU, its own events tell the time.
        rounds: samples of each function; who goes first changes from round to round. A function
            that has taken 10 seconds gets no more of them, but always three.

    Returns:
        Seconds per call, one number per sample. A sample of a short function is the mean of as
        many calls as take 5 ms, at most 100.
    """
    repeats = {
        name: min(_MAX_REPEATS, math.ceil(_SAMPLE_SECONDS / _elapsed(call, 1, device)))
        for name, call in calls.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        shift = number % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            spent = sum(samples[name]) * repeats[name]
            if spent < _MAX_SECONDS or len(samples[name]) < _MIN_SAMPLES:
                samples[name].append(_elapsed(calls[name], repeats[name], device))
    return samples


def summarise(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and least of some seconds, in milliseconds, and their number."""
    quartiles = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    )
    names = ("quartile1_ms", "median_ms", "quartile3_ms")
    times = {name: 1e3 * value for name, value in zip(names, quartiles, strict=True)}
    return times | dict(min_ms=1e3 * min(samples), samples=len(samples))


def peak_memory(call: Callable[[], object], device: torch.device) -> int:
    """Largest sum of memory that ``call`` held at once beside what was there, in bytes.

    The result counts, as it is held to the end. On a CPU, from PyTorch's records of every
    allocation and release: memory that a library gets elsewhere is not seen.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        torch.cuda.synchronize(device)
        del result
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        result = call()
    del result
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def environment(device: torch.device) -> dict:
    """Hardware and versions that a figure belongs to."""

    def version(distribution: str) -> str | None:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            return None

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
    hardware = dict(
        device=device.type,
        cpu=cpu,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )
    versions = dict(
        python=platform.python_version(),
        mmlocal=__version__,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        triton=version("triton"),
        natten=version("natten"),
        mmpretrain=version("onedl-mmpretrain") or version("mmpretrain"),
    )
    return dict(hardware=hardware, versions=versions)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first being the header, as an aligned Markdown table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [c.rjust(w) for c, w in zip(cells, widths, strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *padded[1:]])} |"

    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def write_json(result: dict, path: Path) -> None:
    """Write the contents of a benchmark, each of its ``results`` in a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = json.dumps({key: x for key, x in result.items() if key != "results"}, indent=1)
    rows = ",\n  ".join(json.dumps(row) for row in result["results"])
    write_whole(path, f'{about[:-2]},\n "results": [\n  {rows}\n ]\n}}\n')


# ------------------------------------------------------------------------------------- checks


def _results(function: Callable[..., Tensor], tensors: dict[str, Tensor], make) -> tuple:
    """Output and gradients by name, and the cotangent they are for."""
    out = function(**tensors)
    cotangent = make(*out.shape).detach()
    grads = torch.autograd.grad(out, list(tensors.values()), cotangent)
    names = (f"gradient of {name}" for name in tensors)
    return dict(zip(("output", *names), (out.detach(), *grads), strict=True)), cotangent


def _exact(case: Case, tensors: dict[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """The results of ``reference`` for the same numbers in float64."""
    tensors = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    function = op_function(case, "reference")
    return _results(function, tensors, lambda *shape: cotangent.double())[0]


def _compare(
    ours: dict[str, Tensor],
    exact: dict[str, Tensor],
    backend: Backend,
    dtype: torch.dtype,
    where: str,
) -> None:
    for name, expected in exact.items():
        scale = expected.abs().max().item() or 1.0  # what is all zero is matched absolutely
        error = (ours[name].double() - expected).abs().max().item() / scale
        if not error <= backend.atol[dtype]:  # also if not a number
            raise WrongResultError(
                f"{where}, backend {backend.name}, {dtype}: {name} is off by {error:.1e} of its "
                f"largest value, {backend.atol[dtype]:.1e} is allowed; nothing is timed"
            )


def check_backend(backend: Backend, case: Case, dtype: torch.dtype, device: torch.device) -> None:
    """Compare a backend with ``reference`` in float64, output and all gradients.

    Once on a map of the same channels and at most ``2 * kernel_size + 8`` pixels a side, and once
    on the whole map, of which the last corner is compared: the reference needs its surroundings
    only. ``reference`` itself is not run on the whole map.

    Raises:
        WrongResultError: an error above the tolerance that the backend declares.
    """
    span = 2 * case.kernel_size + _CORNER
    where = f"{case.op}, {case.name}"
    small = replace(
        case,
        batch=min(case.batch, 2),
        height=min(case.height, span),
        width=min(case.width, span - 1),
    )
    make = make_tensors(device, dtype)
    tensors = op_tensors(small, make)
    ours, cotangent = _results(op_function(small, backend.name), tensors, make)
    _compare(ours, _exact(small, tensors, cotangent), backend, dtype, f"{where}, small map")
    if backend.name == "reference":
        return

    tensors = op_tensors(case, make)
    ours, cotangent = _results(op_function(case, backend.name), tensors, make)
    # Windows of the corner start where those of the map do.
    first = [max(0, size - span) // case.stride * case.stride for size in (case.height, case.width)]
    corner = replace(case, batch=1, height=case.height - first[0], width=case.width - first[1])

    def cut(x: Tensor, stride: int = 1) -> Tensor:
        return x[-1:, :, first[0] // stride :, first[1] // stride :] if x.dim() == 4 else x

    exact = _exact(
        corner,
        {name: cut(x) for name, x in tensors.items()},
        cut(cotangent, case.stride),
    )
    n = _CORNER // case.stride

    def last(results: dict[str, Tensor]) -> dict[str, Tensor]:
        sizes = {name: n if name == "output" else _CORNER for name in results}
        return {
            name: x[-1:, :, -sizes[name] :, -sizes[name] :]
            for name, x in results.items()
            if x.dim() == 4  # the gradients of tables add up all pixels
        }

    _compare(last(ours), last(exact), backend, dtype, f"{where}, last corner")


# ---------------------------------------------------------------------------------------- ops


def choose_backends(
    op: str, names: Sequence[str] | None, dtype: torch.dtype, device: torch.device
) -> list[Backend]:
    """The backends of an op to time.

    Args:
        op: ``"elsa"`` or ``"qna"``.
        names: backends; ``None`` for all that run here and need not be named.
        dtype: of the values.
        device: where they run.

    Raises:
        UsageError: unknown name, or a named one does not run here.
    """
    like = torch.empty(0, dtype=dtype, device=device)
    backends = OPS[op].backends
    if names is None:
        return [b for b in backends if not b.only_if_named and not b.not_supported_reasons(like)]
    known = {backend.name: backend for backend in backends}
    for name in names:
        if name not in known:
            raise UsageError(f"--backends: must be among {', '.join(known)}, got {name!r}")
        if reasons := known[name].not_supported_reasons(like):
            raise UsageError(f"--backends: {name} cannot run here: {'; '.join(reasons)}")
    return [known[name] for name in names]


@dataclass
class _Entry:
    """A contestant that has been built for a case."""

    name: str
    kind: str
    calls: dict[str, Callable[[], object]]
    # Per mode, bytes of all inputs and outputs, and of those that a call returns.
    traffic: dict[str, int]
    returned: dict[str, int]


def _build(contestant: Contestant, kind: str, case: Case, device, dtype) -> _Entry:
    tensors, function = contestant.build(case, make_tensors(device, dtype))
    leaves = list(tensors.values())
    plain = {name: x.detach() for name, x in tensors.items()}

    def forward() -> Tensor:
        with torch.no_grad():
            return function(**plain)

    out = forward()
    cotangent = torch.randn_like(out)

    def training() -> tuple:
        out = function(**tensors)
        return out, torch.autograd.grad(out, leaves, cotangent)

    inputs, output = _bytes(leaves), _bytes([out])
    return _Entry(
        contestant.name,
        kind,
        dict(forward=forward, training=training),
        # training: also the gradient that comes in, and one for each input
        dict(forward=inputs + output, training=2 * (inputs + output)),
        dict(forward=output, training=inputs + output),
    )


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def _forgiven(kind: str) -> tuple[type[Exception], ...]:
    """Why a contestant is left out. Peers may fail as they like; ours only for lack of memory."""
    return (Exception,) if kind == "peer" else (CannotRunError, torch.OutOfMemoryError)


def measure_case(
    case: Case,
    contestants: Sequence[tuple[str, Contestant]],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
) -> list[dict]:
    """Time and memory of all contestants on one shape.

    Args:
        case: the shape.
        contestants: each with its kind, ``"backend"`` or ``"peer"``.
        dtype: of all tensors.
        device: where they run.
        rounds: of :func:`time_interleaved`.

    Returns:
        One dict per contestant and mode: ``contestant``, ``kind``, ``mode`` and either ``skipped``,
        a reason, or the figures of :func:`summarise`, ``extra_bytes`` (peak beside inputs and
        outputs), ``traffic_bytes`` (inputs and outputs, each once) and ``fraction_of_copy``, the
        rate of that traffic over the rate of a large copy.
    """
    rows, entries = [], []
    for kind, contestant in contestants:
        try:
            entries.append(_build(contestant, kind, case, device, dtype))
        except _forgiven(kind) as error:
            row = dict(contestant=contestant.name, kind=kind, skipped=first_line(error))
            rows += [row | dict(mode=mode) for mode in MODES]
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    for mode in MODES:
        calls, extra = {}, {}
        for entry in entries:
            try:
                entry.calls[mode]()
                peak = peak_memory(entry.calls[mode], device)
            except _forgiven(entry.kind) as error:
                rows.append(
                    dict(
                        contestant=entry.name, kind=entry.kind, mode=mode, skipped=first_line(error)
                    )
                )
                continue
            extra[entry.name] = max(0, peak - entry.returned[mode])
            calls[entry.name] = entry.calls[mode]
        calls[_COPY] = lambda: target.copy_(source)
        samples = time_interleaved(calls, device, rounds)
        copy_rate = 2 * _COPY_BYTES / statistics.median(samples.pop(_COPY))
        for entry in entries:
            if entry.name in samples:
                rate = entry.traffic[mode] / statistics.median(samples[entry.name])
                rows.append(
                    dict(contestant=entry.name, kind=entry.kind, mode=mode)
                    | summarise(samples[entry.name])
                    | dict(
                        extra_bytes=extra[entry.name],
                        traffic_bytes=entry.traffic[mode],
                        fraction_of_copy=rate / copy_rate,
                        copy_bytes_per_second=copy_rate,
                    )
                )
    order = [contestant.name for _, contestant in contestants]
    return sorted(rows, key=lambda row: (order.index(row["contestant"]), MODES.index(row["mode"])))


def benchmark_ops(
    out: Path,
    ops: Sequence[str] = ("elsa", "qna"),
    shapes: str = "stages",
    dtypes: Sequence[str] = ("float32",),
    backends: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    rounds: int = 20,
    device: str | None = None,
) -> dict:
    """Check our backends, then time them beside their peers; prints a table for each shape.

    Writes ``out/ops_<shapes>_<device>.json``, anew after each shape, and for the shapes that grow
    along an axis, a picture for each op and dtype.

    Args:
        out: folder for the results.
        ops: ``"elsa"``, ``"qna"``.
        shapes: name out of ``peers.SHAPES``.
        dtypes: names out of ``DTYPES``.
        backends: as in :func:`choose_backends`.
        peers: names out of ``peers.PEERS``; ``None`` for all.
        rounds: of :func:`time_interleaved`.
        device: as in :func:`choose_device`.

    Returns:
        The contents of the JSON file: ``hardware``, ``versions``, ``settings`` and ``results``, a
        list of the dicts of :func:`measure_case`, each with ``case`` and ``dtype``.

    Raises:
        UsageError: an unknown name, something named that does not run here, ``rounds`` below 1.
        WrongResultError: a backend is wrong; nothing has been timed then.
    """
    if rounds < 1:
        raise UsageError(f"--rounds must be at least 1, got {rounds}")
    target = choose_device(device)
    known = {peer.name: peer for peer in PEERS}
    for name in peers or ():
        if name not in known:
            raise UsageError(f"--peers: must be among {', '.join(known)}, got {name!r}")
    chosen = [peer for peer in PEERS if peers is None or peer.name in peers]
    ours = {
        (op, dtype): choose_backends(op, backends, DTYPES[dtype], target)
        for op in ops
        for dtype in dtypes
    }
    runs = [(c, dtype) for c in SHAPES[shapes]() if c.op in ops for dtype in dtypes]
    for case, dtype in runs:
        for backend in ours[case.op, dtype]:
            check_backend(backend, case, DTYPES[dtype], target)
    names = sorted({f"{op} {b.name}" for (op, _), found in ours.items() for b in found})
    print(f"correct within their tolerances on all shapes: {', '.join(names)}\n", flush=True)

    result = environment(target) | dict(
        date=datetime.date.today().isoformat(),
        settings=dict(
            shapes=shapes,
            dtypes=list(dtypes),
            rounds=rounds,
            memory_format="channels_last",
            contestants={
                c.name: c.description for op in ops for c in (*list_backends(op), *chosen)
            },
        ),
        results=[],
    )
    stem = f"ops_{shapes}_{target.type}"
    for case, dtype in runs:
        running = {backend.name for backend in ours[case.op, dtype]}
        contestants = [("backend", c) for c in list_backends(case.op) if c.name in running]
        contestants += [("peer", peer) for peer in chosen if case.op in peer.ops]
        rows = measure_case(case, contestants, DTYPES[dtype], target, rounds)
        rows = [dict(case=asdict(case), dtype=dtype) | row for row in rows]
        print(format_case(rows) + "\n", flush=True)
        result["results"] += rows
        write_json(result, out / f"{stem}.json")
    plot_ops(result, out, stem)
    return result


def format_case(rows: Sequence[dict]) -> str:
    """The table of one shape, and below it who was left out and why."""
    case = rows[0]["case"]
    table = [
        ["contestant", *(f"{mode} {unit}" for mode in MODES for unit in ("ms", "MiB", "copy"))]
    ]
    skipped: dict[str, list[str]] = {}
    for name in dict.fromkeys(row["contestant"] for row in rows):
        cells = [name]
        for mode in MODES:
            row = next(r for r in rows if (r["contestant"], r["mode"]) == (name, mode))
            if "skipped" in row:
                skipped.setdefault(f"{name}: {row['skipped']}", []).append(mode)
                cells += ["-"] * 3
                continue
            cells += [
                f"{row['median_ms']:.2f}",
                f"{row['extra_bytes'] / 2**20:.1f}",
                f"{row['fraction_of_copy']:.1%}",
            ]
        table.append(cells)
    title = (
        f"{case['op']}, {case['name']}: {case['batch']}x{case['channels']}x{case['height']}x"
        f"{case['width']}, {case['heads']} heads, kernel {case['kernel_size']}, "
        f"stride {case['stride']}, {rows[0]['dtype']}"
    )
    notes = [f"not run, {' and '.join(modes)}: {text}" for text, modes in skipped.items()]
    return "\n".join([title, "", format_table(table), *notes])


# What grows in a set of shapes.
_AXES = {"figure2": ("kernel_size", "kernel size"), "resolution": ("height", "side of the map")}


def plot_ops(result: dict, out: Path, stem: str) -> list[Path]:
    """Draw time and memory against what grows in the shapes.

    Args:
        result: of :func:`benchmark_ops`.
        out: folder for the pictures.
        stem: how their names begin.

    Returns:
        ``out/<stem>_<op>_<dtype>.png`` for each op and dtype; none where nothing grows.
    """
    # Without a display, and without touching the caller's pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if result["settings"]["shapes"] not in _AXES:
        return []
    key, label = _AXES[result["settings"]["shapes"]]
    paths = []
    groups = dict.fromkeys((row["case"]["op"], row["dtype"]) for row in result["results"])
    # A contestant has the same colour in all pictures.
    ran = {row["contestant"] for row in result["results"] if "skipped" not in row}
    colors = {name: f"C{i}" for i, name in enumerate(sorted(ran))}
    for op, dtype in groups:
        figure = Figure(figsize=(12, 8), layout="constrained")
        FigureCanvasAgg(figure)
        lines = {}
        for axes, mode in zip(figure.subplots(2, 2), MODES, strict=True):
            curves: dict[str, list] = {}
            for row in result["results"]:
                case = (row["case"]["op"], row["dtype"], row["mode"])
                if case == (op, dtype, mode) and "skipped" not in row:
                    point = (row["case"][key], row["median_ms"], row["extra_bytes"] / 2**20)
                    curves.setdefault(row["contestant"], []).append(point)
            for name, points in sorted(curves.items()):
                for axis, column in zip(axes, (1, 2), strict=True):
                    xs, ys = [p[0] for p in points], [p[column] for p in points]
                    (lines[name],) = axis.plot(xs, ys, marker="o", color=colors[name])
            ticks = sorted({row["case"][key] for row in result["results"]})
            axes[0].set(title=f"{mode}: time", ylabel="ms", yscale="log")
            axes[1].set(title=f"{mode}: memory beside inputs and outputs", ylabel="MiB")
            axes[1].set_yscale("symlog", linthresh=1)  # some need none
            for axis in axes:
                axis.set_xscale("log", base=2) if key == "height" else None
                axis.set_xticks(ticks, [str(tick) for tick in ticks])
                axis.set_xlabel(label)
                axis.grid(alpha=0.3)
        figure.legend(lines.values(), lines.keys(), loc="outside right upper")
        hardware = result["hardware"]
        figure.suptitle(f"{op}, {dtype}, {hardware['gpu'] or hardware['cpu']}")
        paths.append(out / f"{stem}_{op}_{dtype}.png")
        figure.savefig(paths[-1], dpi=120)
    return paths
