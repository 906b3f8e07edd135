"""How often each loop of a compiled Triton kernel runs, from the PTX code that Triton wrote.

One thread of the first program is followed. Only the whole numbers that decide branches are
computed; what comes from memory is unknown. An unknown branch leaves code out where it can.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.control_flow import Block, find_loops, innermost

# More blocks than any kernel runs.
_MOST_STEPS = 1_000_000
_LABEL = re.compile(r"(\$L__BB\w+):")
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*([^;]*);")


@dataclass(frozen=True)
class Instruction:
    """One line of PTX, such as ``@!%p1 add.s32 %r1, %r2, 5;``.

    Args:
        negated: whether the instruction runs where the predicate is false.
        predicate: register that decides whether it runs, or ``None``.
        name: operation and types.
        operands: registers, numbers and labels; the result comes first.
    """

    negated: bool
    predicate: str | None
    name: str
    operands: list[str]


@dataclass(frozen=True)
class LoopCount:
    """A loop, and how often it ran.

    Args:
        runs: how often its header ran, outer loops included.
        depth: number of loops around it.
        work: number of its instructions by kind. Inner loops do not count.
    """

    runs: int
    depth: int
    work: dict[str, int]


# Kinds of instructions that the last compiler neither adds nor removes, unless it unrolls a loop.
_WORK = {
    "load": re.compile(r"ld\.global"),
    "store": re.compile(r"st\.global"),
    "exp": re.compile(r"ex2\."),
    "mma": re.compile(r"(mma|wgmma\.mma_async|tcgen05\.mma)\."),
    "red": re.compile(r"red\.|atom\."),
}


def _parse(ptx: str) -> list[Block[Instruction]]:
    body = ptx[ptx.index(".entry") :]
    body = body[body.index("\n{") + 2 :].split("$L__func_end")[0]
    blocks, labels = [Block[Instruction]([])], {}
    closed = False
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        label = _LABEL.match(line)
        if label or closed:
            blocks.append(Block([]))
            closed = False
        if label:
            labels[label[1]] = len(blocks) - 1
            continue
        for negated, predicate, name, operands in _INSTRUCTION.findall(line):
            found = Instruction(
                bool(negated), predicate or None, name, re.findall(r"[^\s,{}\[\]]+", operands)
            )
            blocks[-1].instructions.append(found)
            closed = name.startswith(("bra", "ret"))
    for number, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else None
        if last is not None and last.name.startswith("bra"):
            block.successors.append(labels[last.operands[0]])
        if last is None or not last.name.startswith(("bra", "ret")) or last.predicate:
            block.successors.append(number + 1)
    return blocks


def _wrapped(number: int, types: str) -> int:
    bits = int(re.findall(r"\d+", types)[-1])
    number &= 2**bits - 1
    signed = types[0] != "u"
    return number - 2**bits if signed and number >= 2 ** (bits - 1) else number


def _quotient(x: int, y: int) -> int:
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
}
_COMPUTE: dict[tuple[str, int], Callable[..., int]] = {
    ("mov", 1): lambda x: x,
    ("cvt", 1): lambda x: x,
    ("not", 1): lambda x: not x,
    ("neg", 1): lambda x: -x,
    ("abs", 1): abs,
    ("add", 2): lambda x, y: x + y,
    ("sub", 2): lambda x, y: x - y,
    ("mul", 2): lambda x, y: x * y,
    ("mad", 3): lambda x, y, z: x * y + z,
    ("div", 2): _quotient,
    ("rem", 2): lambda x, y: x - y * _quotient(x, y),
    ("min", 2): min,
    ("max", 2): max,
    ("and", 2): lambda x, y: x & y,
    ("or", 2): lambda x, y: x | y,
    ("xor", 2): lambda x, y: x ^ y,
    ("shl", 2): lambda x, y: x << y,
    ("shr", 2): lambda x, y: x >> y,
    ("selp", 3): lambda x, y, p: x if p else y,
}


class _Thread:
    """The known registers of a thread."""

    def __init__(self, parameters: Sequence[int | None]) -> None:
        self.parameters = parameters
        self.registers: dict[str, int | None] = {"%ctaid.x": 0, "%ctaid.y": 0, "%tid.x": 0}

    def read(self, operand: str) -> int | None:
        if re.fullmatch(r"-?\d+", operand):
            return int(operand)
        return self.registers.get(operand)

    def run(self, instruction: Instruction) -> None:
        operation, *types = instruction.name.split(".")
        result, *sources = instruction.operands
        self.registers[result] = self._result(operation, types, sources)
        if instruction.predicate:
            self.registers[result] = None

    def _result(self, operation: str, types: list[str], sources: list[str]) -> int | None:
        if operation == "ld" and types[0] == "param":
            return self.parameters[int(sources[0].rsplit("_", 1)[1])]
        values = [self.read(x) for x in sources]
        if operation == "and" and 0 in values:
            return 0
        if any(x is None for x in values) or not types or types[-1][0] == "f":
            return None
        numbers = [x for x in values if x is not None]
        if operation == "setp":
            compared = [_wrapped(x, types[-1]) for x in numbers]
            return int(_COMPARE[types[0]](*compared)) if types[0] in _COMPARE else None
        compute = _COMPUTE.get((operation, len(numbers)))
        if compute is None or types[0] == "hi":
            return None
        number = compute(*numbers)
        if types[-1] == "pred":
            return int(number) & 1
        kind = types[0] if operation == "cvt" else types[-1]
        if operation in ("mul", "mad") and types[0] == "wide":
            return number
        return _wrapped(number, kind)


def _deciding(blocks: Sequence[Block[Instruction]]) -> list[list[Instruction]]:
    """Return the instructions of each block on which a branch depends."""
    lines = [line for block in blocks for line in block.instructions if line.operands]
    needed = {x.predicate for x in lines if x.name.startswith("bra") and x.predicate}
    size = 0
    while len(needed) > size:
        size = len(needed)
        for line in lines:
            if line.operands[0] in needed and not line.name.startswith(("bra", "st")):
                needed |= {x for x in (line.predicate, *line.operands[1:]) if x and x[0] == "%"}
    return [
        [x for x in b.instructions if x.operands and x.operands[0] in needed and x.name[:2] != "st"]
        for b in blocks
    ]


def count_loops(ptx: str, parameters: Sequence[int | None]) -> list[LoopCount]:
    """Return the loops in the order of the code.

    Args:
        ptx: the text of one kernel.
        parameters: arguments of the kernel; ``None`` for what is not a whole number.

    Raises:
        ValueError: the kernel does not end.
    """
    blocks = _parse(ptx)
    decide = _deciding(blocks)
    thread, runs, now = _Thread(parameters), [0] * len(blocks), 0
    for _ in range(_MOST_STEPS):
        block = blocks[now]
        runs[now] += 1
        for instruction in decide[now]:
            thread.run(instruction)
        if not block.successors:
            break
        now = _next(thread, block, now)
    else:
        raise ValueError(f"a kernel runs more than {_MOST_STEPS} blocks; is a loop unknown?")
    loops = find_loops(blocks)
    own = innermost(loops)
    found = []
    for number, loop in enumerate(loops):
        lines = [i for b in loop.blocks if own[b] == number for i in blocks[b].instructions]
        work = {k: sum(bool(v.match(x.name)) for x in lines) for k, v in _WORK.items()}
        depth = sum(loop.header in other.blocks for other in loops) - 1
        found.append(LoopCount(runs[loop.header], depth, work))
    return found


def _next(thread: _Thread, block: Block[Instruction], now: int) -> int:
    branch = block.instructions[-1] if block.instructions else None
    if branch is None or not branch.name.startswith("bra") or not branch.predicate:
        return block.successors[0]
    decided = thread.registers.get(branch.predicate)
    if decided is None:  # leave out what can be left out
        return max(block.successors)
    return block.successors[0 if bool(decided) != branch.negated else 1]
