"""Predict from machine code how fast the Triton kernels can be.

No kernel runs. Each is compiled for GPUs that are not there, and taken apart again. A prediction is
a bound: it knows how many instructions a call has and how many bytes it must move, and nothing of
latency, caches and the order of programs.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
import triton
from triton.runtime.autotuner import Autotuner

from benchmarks.ptx import count_loops
from benchmarks.report import format_table, write_json
from benchmarks.sass import Program, examine
from benchmarks.triton_calls import CALLS, VARIANTS, Call
from benchmarks.triton_driver import Launch, recording
from mmlocal.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
AUDIT = Path("docs/benchmarks/triton_audit.json")
PAGE = Path("docs/gpu_kernels.md")
# The script replaces the lines between these two.
BEGIN = "<!-- written by tools/audit_triton.py: begin -->"
END = "<!-- written by tools/audit_triton.py: end -->"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# ``CALLS`` are also compiled in this dtype, for one GPU.
_HALF = {"float16": torch.float16}
ALL_DTYPES = DTYPES | _HALF
# Registers of a multiprocessor, the most warps on it, and by how many registers a warp grows.
_REGISTERS, _WARPS, _STEP = 2**16, 64, 256


# How many cycles of a scheduler an instruction occupies its unit, by capability. "L1" is for 128
# bytes between registers and L1, and is a unit that all four schedulers share.
CYCLES = {
    80: dict(issue=1, fp32=2, special=8, L1=4),
    90: dict(issue=1, fp32=1, special=8, L1=4),
    100: dict(issue=1, fp32=1, special=8, L1=4),
}


@dataclass(frozen=True)
class Machine:
    """Figures of a GPU.

    Args:
        capability: 80, 90 or 100.
        processors: multiprocessors. Each has four schedulers, which issue one instruction per
            cycle.
        gigahertz: clock.
        terabytes_per_second: bandwidth of the memory.
    """

    capability: int
    processors: int
    gigahertz: float
    terabytes_per_second: float

    @property
    def cycles_per_byte(self) -> float:
        """Cycles of all schedulers while the memory moves a byte."""
        return self.processors * 4 * self.gigahertz / 1e3 / self.terabytes_per_second


MACHINES = {
    "A100": Machine(80, 108, 1.41, 1.94),
    "H100": Machine(90, 132, 1.70, 3.35),
    "H200": Machine(90, 132, 1.70, 4.80),
    "B200": Machine(100, 148, 1.85, 8.00),
}
# The machine that ``VARIANTS`` are compiled for, and ``CALLS`` in float16.
VARIANTS_ON = "H100"
CAPABILITIES = sorted(CYCLES)


def fingerprint() -> str:
    """Return a number that changes with the kernels. Comments and empty lines do not count."""
    folder = ROOT / "mmlocal/ops"
    digest = hashlib.sha256()
    for path in sorted([folder / "triton_common.py", *folder.glob("*/triton_*.py")]):
        for line in path.read_text().splitlines():
            if line.strip() and not line.strip().startswith("#"):
                digest.update(line.rstrip().encode() + b"\n")
    return digest.hexdigest()[:16]


def _forget() -> None:
    """Let all kernels be tuned again. Triton tunes once for all GPUs, and nothing was measured."""
    for name, module in list(sys.modules.items()):
        if name.startswith("mmlocal.ops."):
            for kernel in vars(module).values():
                if isinstance(kernel, Autotuner):
                    kernel.cache.clear()


def launches_of(call: Call, dtype: torch.dtype, capability: int) -> list[Launch]:
    """Return the launches of all configurations of a call, each once."""
    _forget()
    try:
        with recording(capability) as launches:
            call.run(dtype)
    finally:
        _forget()
    found = {(launch.kernel, str(launch.constants), launch.warps): launch for launch in launches}
    return list(found.values())


def cycles_of(launch: Launch, program: Program) -> tuple[float, str]:
    """Return for how many cycles per byte of the tensors the busiest unit works, and its name."""
    work = {"issue": program.instructions, "L1": program.wavefronts} | program.units
    busy = {unit: n * CYCLES[launch.capability][unit] for unit, n in work.items()}
    limit = max(busy, key=lambda name: busy[name])
    return busy[limit] * launch.programs * launch.warps / launch.traffic, limit


def share_of(row: dict, machine: Machine) -> float:
    """Return the share of the speed of a copy that a kernel can reach.

    It cannot be faster than the memory moves its tensors once, and not faster than the schedulers
    and units run its instructions.
    """
    return min(1.0, machine.cycles_per_byte / row["cycles"])


def resident_warps(row: dict) -> int:
    """Return how many warps of a kernel a multiprocessor holds at once, by their registers."""
    each = -(-row["registers"] * 32 // _STEP) * _STEP
    return min(_WARPS, _REGISTERS // (each * row["warps"]) * row["warps"])


def row_of(call: Call, dtype: str, launch: Launch) -> dict:
    """Return the figures of one configuration of a kernel."""
    program = examine(launch.cubin, count_loops(launch.ptx, launch.parameters))
    inner = program.inner
    cycles, limit = cycles_of(launch, program)
    slots = program.instructions * launch.programs * launch.warps / launch.traffic
    return dict(
        call=call.name,
        dtype=dtype,
        kernel=launch.kernel,
        capability=launch.capability,
        tile=launch.constants.get("TILE"),
        warps=launch.warps,
        registers=program.registers,
        spilled=program.spilled,
        shared=launch.shared,
        slots=float(f"{slots:.4g}"),
        cycles=float(f"{cycles:.4g}"),
        limit=limit,
        inner=None if inner is None else [inner.instructions, inner.loaded],
    )


def audit(
    calls: Iterable[Call],
    dtypes: Iterable[str] = DTYPES,
    capabilities: Iterable[int] = CAPABILITIES,
) -> list[dict]:
    """Return a row for each kernel, configuration, dtype and GPU."""
    return [
        row_of(call, dtype, launch)
        for call in calls
        for dtype in dtypes
        for capability in capabilities
        for launch in launches_of(call, ALL_DTYPES[dtype], capability)
    ]


def _audit_named(name: str, dtype: str, capability: int) -> list[dict]:
    calls = [call for call in [*CALLS, *VARIANTS] if call.name == name]
    return audit(calls, [dtype], [capability])


def audit_all(only: str = "") -> list[dict]:
    """Return the rows of all calls whose names have this text, from one process per core."""
    one = [MACHINES[VARIANTS_ON].capability]
    tasks = [
        (call.name, dtype, capability)
        for calls, dtypes, capabilities in (
            (CALLS, DTYPES, CAPABILITIES),
            (CALLS, _HALF, one),
            (VARIANTS, DTYPES, one),
        )
        for call in calls
        for dtype in dtypes
        for capability in capabilities
        if only in call.name
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(_audit_named, *zip(*tasks, strict=True)) for row in rows]


# What the configurations of a kernel have in common.
_COMMON = ("call", "dtype", "kernel", "capability")


def pack(rows: Iterable[dict]) -> list[dict]:
    """Return one row for all configurations of a kernel, with lists of their figures."""
    groups: dict[tuple, dict] = {}
    for row in rows:
        common = {name: row[name] for name in _COMMON}
        group = groups.setdefault(tuple(common.values()), common)
        for name in row.keys() - common.keys():
            group.setdefault(name, []).append(row[name])
    return [{name: group[name] for name in row} for group in groups.values()]


def unpack(packed: Iterable[dict]) -> list[dict]:
    """Return the rows from which ``pack`` made these."""
    rows = []
    for group in packed:
        common = {name: group[name] for name in _COMMON}
        lists = {name: x for name, x in group.items() if name not in common}
        for figures in zip(*lists.values(), strict=True):
            rows.append(common | dict(zip(lists, figures, strict=True)))
    return rows


def write_audit(rows: list[dict]) -> list[Path]:
    """Write the figures and the tables of the page, and return the paths of both."""
    about = dict(
        triton=triton.__version__,
        kernels=fingerprint(),
        cycles=CYCLES,
        machines={name: asdict(machine) for name, machine in MACHINES.items()},
        results=pack(rows),
    )
    write_json(about, ROOT / AUDIT)
    write_whole(ROOT / PAGE, page_with((ROOT / PAGE).read_text(), rows))
    return [AUDIT, PAGE]


def page_with(page: str, rows: Sequence[dict]) -> str:
    """Return the page with the tables of these rows."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{format_audit(rows)}\n\n{END}{after}"


def format_audit(rows: Sequence[dict]) -> str:
    """Format the rows as Markdown tables: one for each dtype, and one for the variants."""
    names = {call.name for call in CALLS}
    tables = [
        f"`{dtype}`:\n\n{_format_calls(chosen)}"
        for dtype in ALL_DTYPES
        if (chosen := [r for r in rows if r["call"] in names and r["dtype"] == dtype])
    ]
    if variants := [row for row in rows if row["call"] not in names]:
        tables.append(f"Variants on {VARIANTS_ON}:\n\n{_format_variants(variants)}")
    return "\n\n".join(tables)


def _by_kernel(rows: Iterable[dict]) -> dict[tuple[str, str], list[dict]]:
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["call"], row["kernel"]), []).append(row)
    return groups


def _best(rows: Sequence[dict], machine: Machine) -> dict | None:
    known = [row for row in rows if row["capability"] == machine.capability]
    return min(known, key=lambda row: row["cycles"], default=None)


def _share(row: dict | None, machine: Machine) -> str:
    if row is None:
        return "-"
    share = share_of(row, machine)
    return f"{share:.0%} {row['limit'] if share < 1 else 'memory'}"


def _kibibytes(rows: Sequence[dict]) -> str:
    return f"{max(row['shared'] for row in rows) / 1024:.1f}"


def _format_calls(rows: Sequence[dict]) -> str:
    """Format the best configuration of each kernel."""
    known = {row["capability"] for row in rows}
    machines = {name: m for name, m in MACHINES.items() if m.capability in known}
    table = [["kernel", "registers", "shared, KiB", "slots per byte", "inner loop", *machines]]
    last = None
    for (call, kernel), members in _by_kernel(rows).items():
        if call != last:
            table.append([f"**{call}**", *[""] * (len(table[0]) - 1)])
            last = call
        best = {name: _best(members, machine) for name, machine in machines.items()}
        shown = next(row for row in best.values() if row is not None)
        inner = shown["inner"]
        table.append(
            [
                kernel.replace("triton_", ""),
                str(max(row["registers"] for row in members)),
                _kibibytes(members),
                f"{shown['slots']:.2f}",
                f"{inner[0] / inner[1]:.1f}" if inner and inner[1] else "-",
                *(_share(row, machines[name]) for name, row in best.items()),
            ]
        )
    return format_table(table)


def _format_variants(rows: Sequence[dict]) -> str:
    """Format the worst kernel of each call."""
    head = ["call", "kernels, configurations"]
    for name in ("registers", "spilled", "shared, KiB", "slowest kernel"):
        head += [f"{name}, {dtype}" for dtype in DTYPES]
    table = [head]
    machine = MACHINES[VARIANTS_ON]
    for call in dict.fromkeys(row["call"] for row in rows):
        columns: list[list[str]] = [[], [], [], []]
        counts = []
        for dtype in DTYPES:
            mine = [row for row in rows if (row["call"], row["dtype"]) == (call, dtype)]
            best = [_best(members, machine) for members in _by_kernel(mine).values()]
            slowest = max((x for x in best if x), key=lambda row: row["cycles"])
            counts.append(f"{len(best)}, {len(mine)}")
            columns[0].append(str(max(row["registers"] for row in mine)))
            columns[1].append(str(sum(row["spilled"] > 0 for row in mine)))
            columns[2].append(_kibibytes(mine))
            columns[3].append(_share(slowest, machine))
        table.append([call, counts[0], *(cell for column in columns for cell in column)])
    return format_table(table)
