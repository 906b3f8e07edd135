"""Predict from machine code how fast the Triton kernels can be.

No kernel runs. Each is compiled for GPUs that are not there, and taken apart again. A prediction is
a bound: it knows how many instructions a call has and how many bytes it must move, and nothing of
latency, caches and the order of programs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.runtime.autotuner import Autotuner

from benchmarks.ptx import count_loops
from benchmarks.report import format_table, write_json
from benchmarks.sass import Program, examine
from benchmarks.triton_calls import CALLS, Call
from benchmarks.triton_driver import Launch, recording
from mmlocal.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
AUDIT = Path("docs/benchmarks/triton_audit.json")
PAGE = Path("docs/gpu_kernels.md")
# The script replaces the lines between these two.
BEGIN = "<!-- written by tools/audit_triton.py: begin -->"
END = "<!-- written by tools/audit_triton.py: end -->"
DTYPES = {"bfloat16": torch.bfloat16}
# Registers of a multiprocessor, the most warps on it, and by how many registers a warp grows.
_REGISTERS, _WARPS, _STEP = 2**16, 64, 256


@dataclass(frozen=True)
class Machine:
    """Figures of a GPU.

    Args:
        capability: 80, 90 or 100.
        processors: multiprocessors. Each has four schedulers, which issue one instruction per
            cycle.
        gigahertz: clock.
        terabytes: bandwidth of the memory per second.
        cycles: how many cycles of a scheduler an instruction occupies its unit. A ``wavefront``,
            128 bytes between registers and L1, occupies a unit that all four schedulers share.
    """

    capability: int
    processors: int
    gigahertz: float
    terabytes: float
    cycles: dict[str, int]


MACHINES = {
    "A100": Machine(80, 108, 1.41, 1.94, dict(fp32=2, special=8, wavefront=4)),
    "H100": Machine(90, 132, 1.70, 3.35, dict(fp32=1, special=8, wavefront=4)),
    "H200": Machine(90, 132, 1.70, 4.80, dict(fp32=1, special=8, wavefront=4)),
    "B200": Machine(100, 148, 1.85, 8.00, dict(fp32=1, special=8, wavefront=4)),
}
CAPABILITIES = sorted({machine.capability for machine in MACHINES.values()})


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


def predict(launch: Launch, program: Program, machine: Machine) -> tuple[float, str]:
    """Return the share of the speed of a copy that a call can reach, and what limits it.

    A call cannot be faster than the memory moves its tensors once, and not faster than the
    schedulers and units run its instructions.
    """
    warps = launch.programs * launch.warps
    busy = {"issue": program.instructions}
    busy |= {unit: n * machine.cycles[unit] for unit, n in program.units.items()}
    busy["L1"] = program.wavefronts * machine.cycles["wavefront"]
    limit = max(busy, key=lambda name: busy[name])
    rate = machine.processors * 4 * machine.gigahertz * 1e9
    seconds = warps * busy[limit] / rate
    copy = launch.traffic / (machine.terabytes * 1e12)
    return (1.0, "memory") if copy >= seconds else (copy / seconds, limit)


def resident_warps(launch: Launch, program: Program) -> int:
    """Return how many warps of a kernel a multiprocessor holds at once, by their registers."""
    each = -(-program.registers * 32 // _STEP) * _STEP
    return min(_WARPS, _REGISTERS // (each * launch.warps) * launch.warps)


def row_of(call: Call, dtype: str, launch: Launch) -> dict:
    """Return the figures of one configuration of a kernel."""
    program = examine(launch.cubin, count_loops(launch.ptx, launch.parameters))
    inner = program.inner
    shares = {
        name: predict(launch, program, machine)
        for name, machine in MACHINES.items()
        if machine.capability == launch.capability
    }
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
        resident_warps=resident_warps(launch, program),
        slots=round(program.instructions * launch.programs * launch.warps / launch.traffic, 3),
        inner=None if inner is None else [inner.instructions, inner.loaded],
        share={name: round(share, 3) for name, (share, _) in shares.items()},
        limit={name: limit for name, (_, limit) in shares.items()},
    )


def audit(
    calls: Sequence[Call] = CALLS,
    dtypes: Iterable[str] = DTYPES,
    capabilities: Iterable[int] = CAPABILITIES,
) -> list[dict]:
    """Return a row for each kernel, configuration, dtype and GPU."""
    return [
        row_of(call, dtype, launch)
        for call in calls
        for dtype in dtypes
        for capability in capabilities
        for launch in launches_of(call, DTYPES[dtype], capability)
    ]


def read_audit() -> dict:
    """Return the committed audit."""
    return json.loads((ROOT / AUDIT).read_text())


def write_audit(rows: list[dict]) -> list[Path]:
    """Write the figures and the tables of the page, and return the paths of both."""
    about = dict(
        triton=triton.__version__,
        kernels=fingerprint(),
        machines={
            name: dict(
                capability=m.capability,
                processors=m.processors,
                gigahertz=m.gigahertz,
                terabytes_per_second=m.terabytes,
                cycles=m.cycles,
            )
            for name, m in MACHINES.items()
        },
        results=rows,
    )
    write_json(about, ROOT / AUDIT)
    write_whole(ROOT / PAGE, page_with((ROOT / PAGE).read_text(), rows))
    return [AUDIT, PAGE]


def page_with(page: str, rows: Sequence[dict]) -> str:
    """Return the page with the tables of these rows."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    tables = "\n\n".join(format_audit(rows, dtype) for dtype in DTYPES)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def _best(rows: Sequence[dict], machine: str) -> dict | None:
    known = [row for row in rows if machine in row["share"]]
    return max(known, key=lambda row: row["share"][machine]) if known else None


def format_audit(rows: Sequence[dict], dtype: str) -> str:
    """Format the best configuration of each kernel in one dtype as a Markdown table."""
    table = [["kernel", "registers", "shared, KiB", "slots per byte", "inner loop", *MACHINES]]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        if row["dtype"] == dtype:
            groups.setdefault((row["call"], row["kernel"]), []).append(row)
    last = None
    for (call, kernel), members in groups.items():
        if call != last:
            table.append([f"**{call}**", *[""] * (len(table[0]) - 1)])
            last = call
        best = {name: _best(members, name) for name in MACHINES}
        shown = next(row for row in best.values() if row is not None)
        inner = shown["inner"]
        cells = [
            f"{row['share'][n]:.0%} {row['limit'][n]}" if row else "-" for n, row in best.items()
        ]
        table.append(
            [
                kernel.replace("triton_", ""),
                str(max(row["registers"] for row in members)),
                f"{max(row['shared'] for row in members) / 1024:.1f}",
                f"{shown['slots']:.2f}",
                f"{inner[0] / inner[1]:.1f}" if inner and inner[1] else "-",
                *cells,
            ]
        )
    return f"`{dtype}`:\n\n{format_table(table)}"
