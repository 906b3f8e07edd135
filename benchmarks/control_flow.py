"""Blocks and loops of assembler code: which code is in which loop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Instruction = TypeVar("Instruction")


@dataclass
class Block(Generic[Instruction]):
    """Instructions that run one after the other.

    Args:
        instructions: in their order.
        successors: numbers of the blocks that may come next.
    """

    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """Blocks from which one may return to the header without leaving the loop.

    Args:
        header: number of the block at which the loop is entered.
        blocks: numbers of all of its blocks, with the blocks of inner loops.
    """

    header: int
    blocks: set[int]


def _reachable(blocks: Sequence[Block], start: int) -> list[int]:
    seen, order = {start}, [start]
    for number in order:
        for other in blocks[number].successors:
            if other not in seen:
                seen.add(other)
                order.append(other)
    return order


def _dominators(blocks: Sequence[Block]) -> dict[int, set[int]]:
    """For each block that runs, the blocks that ran before it in any case, and itself."""
    order = _reachable(blocks, 0)
    before: dict[int, list[int]] = {number: [] for number in order}
    for number in order:
        for other in blocks[number].successors:
            before[other].append(number)
    found = {number: set(order) for number in order}
    found[0] = {0}
    changed = True
    while changed:
        changed = False
        for number in order[1:]:
            new = set.intersection(*(found[other] for other in before[number])) | {number}
            if new != found[number]:
                found[number], changed = new, True
    return found


def find_loops(blocks: Sequence[Block]) -> list[Loop]:
    """Return the loops in the order of their headers. A loop comes before the loops inside it.

    Args:
        blocks: the first one is the entry.
    """
    dominators = _dominators(blocks)
    before: dict[int, list[int]] = {number: [] for number in dominators}
    for number in dominators:
        for other in blocks[number].successors:
            before[other].append(number)
    loops: dict[int, set[int]] = {}
    for number in dominators:
        for header in set(blocks[number].successors) & dominators[number]:
            body, waiting = loops.setdefault(header, {header}), [number]
            while waiting:
                member = waiting.pop()
                if member not in body:
                    body.add(member)
                    waiting += before[member]
    ordered = sorted(loops.items(), key=lambda x: (x[0], -len(x[1])))
    return [Loop(header, body) for header, body in ordered]


def innermost(loops: Iterable[Loop]) -> dict[int, int]:
    """Return the number of the smallest loop around each block, for blocks inside a loop."""
    found: dict[int, int] = {}
    by_size = sorted(enumerate(loops), key=lambda x: -len(x[1].blocks))
    for number, loop in by_size:
        found |= dict.fromkeys(loop.blocks, number)
    return found
