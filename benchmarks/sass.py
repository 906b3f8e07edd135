"""Read machine code: the registers, loops and instructions of a kernel."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import triton

from benchmarks.control_flow import Block, find_loops, innermost
from benchmarks.ptx import LoopCount

# Where Triton has the tools that take machine code apart.
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_LABEL = re.compile(r"(\.L_x_\d+|\$[\w$]+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_BRANCHES = ("BRA", "EXIT", "RET")
# The kinds of instructions that ``count_loops`` counts in PTX.
_WORK = {
    "load": re.compile(r"LDG\b"),
    "store": re.compile(r"STG\b"),
    "exp": re.compile(r"MUFU\.EX2"),
    "mma": re.compile(r"([HDI]|HG|UTC[A-Z]+)MMA\b"),
    "red": re.compile(r"RED|ATOMG"),
}
# Units that may be busy while the scheduler could issue more.
UNITS = {
    "fp32": re.compile(r"F(FMA|ADD|MUL)2?\b"),
    "special": re.compile(r"MUFU|I2F|F2I"),
}
_SPILLS = re.compile(r"(LDL|STL)\b")
_MOVES = re.compile(r"(LD|ST)[GSL]\b|LDSM|STSM|RED|ATOM|LDGSTS")


@dataclass(frozen=True)
class Inner:
    """The loop in which the most instructions run.

    Args:
        instructions: instructions of one pass.
        loaded: bytes that a thread loads from memory in one pass.
    """

    instructions: int
    loaded: int


@dataclass(frozen=True)
class Program:
    """The needs of a program.

    Args:
        registers: registers of a thread.
        spilled: how many instructions move numbers that do not fit the registers.
        instructions: how many instructions a warp runs.
        units: how many of them run in units of their own, by unit.
        wavefronts: how many blocks of 128 bytes a warp moves to and from its registers.
        inner: the loop in which most instructions run, or ``None`` without loops.
    """

    registers: int
    spilled: int
    instructions: float
    units: dict[str, float]
    wavefronts: float
    inner: Inner | None


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([_TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _parse(text: str) -> list[Block[str]]:
    blocks: list[Block[str]] = [Block([])]
    labels: dict[str, int] = {}
    branches: dict[int, tuple[str | None, bool]] = {}
    closed = False
    for line in text.splitlines():
        label = _LABEL.match(line.strip())
        if blocks[-1].instructions and (label or closed):
            blocks.append(Block([]))
            closed = False
        if label:
            labels[label[1]] = len(blocks) - 1
        for predicate, name, operands in _INSTRUCTION.findall(line):
            if name == "NOP":
                continue
            blocks[-1].instructions.append(name)
            target = re.search(r"`\((\.L_x_\d+)\)", operands)
            # The compiler also leaves a loop by a call that never comes back.
            if name.startswith(_BRANCHES) or (name.startswith("CALL") and target):
                closed = True
                free = not predicate and not re.match(r"\s*!?U?P\d", operands)
                branches[len(blocks) - 1] = (target[1] if target else None, free)
    for number, block in enumerate(blocks):
        target, always = branches.get(number, (None, False))
        if target is not None:
            block.successors.append(labels[target])
        if not always and number + 1 < len(blocks):
            block.successors.append(number + 1)
    return blocks


def _bytes(name: str) -> int:
    """Return the bytes that a thread moves by one load or store."""
    if name.startswith(("LDSM", "STSM")):
        return 4 * int((re.findall(r"\.M88\.(\d)|\.(\d)\b", name) or [("", "1")])[0][0] or 1)
    sizes = ((".128", 16), (".64", 8), ("16", 2), (".U8", 1), (".S8", 1))
    return next((size for part, size in sizes if part in name), 4)


def _passes(work: Counter, depth: int, waiting: list[LoopCount]) -> float:
    """Return how often a loop runs, and take its counterpart from ``waiting``.

    A loop that the last compiler unrolled has a multiple of the instructions. A loop whose inner
    loops it unrolled has the instructions of all passes. A loop without counterpart is counted as
    if it ran once.
    """
    for number, loop in enumerate(waiting):
        inner = list(takewhile(lambda x, outer=loop: x.depth > outer.depth, waiting[number + 1 :]))
        if inner and loop.runs and loop.depth == depth:
            per_run = {k: sum(x.work[k] * x.runs for x in inner) // loop.runs for k in _WORK}
            if work == Counter({k: n + loop.work[k] for k, n in per_run.items()}):
                del waiting[number : number + 1 + len(inner)]
                return float(loop.runs)
    kinds = {kind for kind in _WORK if work[kind]}
    same = [loop for loop in waiting if {k for k, n in loop.work.items() if n} == kinds]
    same.sort(key=lambda loop: loop.depth != depth)
    if not same:
        return 1.0
    waiting.remove(same[0])
    if not kinds:
        return float(same[0].runs)
    most = max(kinds, key=lambda kind: work[kind])
    return same[0].runs * same[0].work[most] / work[most]


def examine(cubin: bytes, counted: Sequence[LoopCount]) -> Program:
    """Return the needs of a program.

    Args:
        cubin: machine code of one kernel.
        counted: the loops of the same kernel in PTX.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        blocks = _parse(_run("nvdisasm", "-c", file.name))
        registers = re.search(r"REG:(\d+)", _run("cuobjdump", "-res-usage", file.name))
    if registers is None:
        raise ValueError("cuobjdump names no registers")
    loops = find_loops(blocks)
    own = innermost(loops)
    lines: list[list[str]] = [[] for _ in loops]
    rest: list[str] = []
    for number, block in enumerate(blocks):
        (lines[own[number]] if number in own else rest).extend(block.instructions)
    work = [
        Counter({k: sum(bool(v.match(x)) for x in body) for k, v in _WORK.items()})
        for body in lines
    ]
    waiting = list(counted)
    depths = [sum(x.header in y.blocks for y in loops) - 1 for x in loops]
    runs = [_passes(w, depth, waiting) for w, depth in zip(work, depths, strict=True)]
    total, units, wavefronts = 0.0, dict.fromkeys(UNITS, 0.0), 0.0
    for times, body in [*zip(runs, lines, strict=True), (1.0, rest)]:
        total += times * len(body)
        for unit, pattern in UNITS.items():
            units[unit] += times * sum(bool(pattern.match(x)) for x in body)
        wavefronts += times * sum(max(1, _bytes(x) // 4) for x in body if _MOVES.match(x))
    inner = None
    if loops:
        hot = max(range(len(loops)), key=lambda i: runs[i] * len(lines[i]))
        loaded = sum(_bytes(x) for x in lines[hot] if _WORK["load"].match(x))
        inner = Inner(len(lines[hot]), loaded)
    spilled = sum(bool(_SPILLS.match(x)) for block in blocks for x in block.instructions)
    return Program(int(registers[1]), spilled, total, units, wavefronts, inner)
