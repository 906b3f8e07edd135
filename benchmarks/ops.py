"""Measure time and memory of our ops and of alternatives that a user could pick.

All contestants of a case run in one process and take turns, so that all of them see the same state
of the machine. If a backend misses its declared tolerance, nothing is timed.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.check import check_backend
from benchmarks.contest import measure_case
from benchmarks.contestants import list_backends
from benchmarks.peers import PEERS
from benchmarks.plots import plot_ops
from benchmarks.report import environment, format_case, write_json
from mmlocal.analysis.measure import choose_device
from mmlocal.errors import UsageError
from mmlocal.ops import OPS
from mmlocal.ops.backends import Backend

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def case_sets() -> list[str]:
    """List the names of the sets of shapes that the ops have."""
    return list(dict.fromkeys(name for op in OPS.values() for name in op.load_analysis().CASES))


def choose_backends(
    op: str, names: Sequence[str] | None, dtype: torch.dtype, device: torch.device
) -> list[Backend]:
    """Choose the backends of an op to time.

    Args:
        op: name out of ``OPS``.
        names: names of backends; ``None`` for all that run here without
            being named.
        dtype: data type of the values.
        device: device that the backends run on.

    Raises:
        UsageError: a name is unknown, or a named backend cannot run here.
    """
    like = torch.empty(0, dtype=dtype, device=device)
    backends = OPS[op].backends
    if names is None:
        return [b for b in backends if not b.only_if_named and not b.not_supported_reasons(like)]
    known = {backend.name: backend for backend in backends}
    for name in names:
        if name not in known:
            raise UsageError(f"must be among {', '.join(known)}, got {name!r}", "backends")
        if reasons := known[name].not_supported_reasons(like):
            raise UsageError(f"{name} cannot run here: {'; '.join(reasons)}", "backends")
    return [known[name] for name in names]


def benchmark_ops(
    out: Path,
    ops: Sequence[str] | None = None,
    shapes: str = "stages",
    dtypes: Sequence[str] = ("float32",),
    backends: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    rounds: int = 20,
    device: str | None = None,
) -> dict:
    """Check our backends, then time them and their peers, and print a table for each shape.

    Writes ``out/ops_<shapes>_<device>.json`` after each shape. If the shapes grow along an axis,
    also draws a picture for each op and dtype.

    Args:
        out: folder for the results.
        ops: names out of ``OPS``; ``None`` for all.
        shapes: name of a set of shapes, out of :func:`case_sets`.
        dtypes: names of data types, out of ``DTYPES``.
        backends: names of backends; ``None`` for all that run here.
        peers: names out of ``PEERS``; ``None`` for all.
        rounds: number of samples of each time, as for :func:`time_interleaved`.
        device: ``"cpu"`` or ``"cuda"``; ``None`` for the GPU if there is one.

    Returns:
        The contents of the JSON file: ``hardware``, ``versions``, ``settings`` and ``results``.
        ``results`` is a list of the dicts of :func:`measure_case`, with ``case`` and ``dtype``
        added.

    Raises:
        UsageError: a name is unknown, a named backend or device cannot run here, or ``rounds`` is
            below 1.
        WrongResultError: a backend misses its declared tolerance. Nothing has been timed then.
    """
    if rounds < 1:
        raise UsageError(f"must be at least 1, got {rounds}", "rounds")
    target = choose_device(device)
    ops = list(OPS) if ops is None else ops
    known = {peer.name: peer for peer in PEERS}
    for name in peers or ():
        if name not in known:
            raise UsageError(f"must be among {', '.join(known)}, got {name!r}", "peers")
    chosen = [peer for peer in PEERS if peers is None or peer.name in peers]
    ours = {
        (op, dtype): choose_backends(op, backends, DTYPES[dtype], target)
        for op in ops
        for dtype in dtypes
    }
    cases = [case for op in ops for case in OPS[op].load_analysis().CASES.get(shapes, ())]
    runs = [(case, dtype) for case in cases for dtype in dtypes]
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
        contestants += [("peer", peer) for peer in chosen if peer.stands_beside(case.op)]
        rows = measure_case(case, contestants, DTYPES[dtype], target, rounds)
        rows = [dict(case=asdict(case), dtype=dtype) | row for row in rows]
        print(format_case(rows) + "\n", flush=True)
        result["results"] += rows
        write_json(result, out / f"{stem}.json")
    plot_ops(result, out, stem)
    return result
