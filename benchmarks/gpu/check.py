"""Check and measure the Triton kernels on one GPU, in a few minutes.

Writes gpu_check.json after each result, and gpu_check.md at the end. Exits with 1 if a result is
wrong or a part ends in an error.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.correctness import big_items, correctness_items
from benchmarks.gpu.isolated import Item, run_items
from benchmarks.gpu.networks import compiled_items, first_step_items, network_items
from benchmarks.gpu.report import format_results, format_row, is_bad
from benchmarks.gpu.speed import flex_items, shape_items, speed_items
from benchmarks.report import environment, write_json
from mmlocal.ops.backends import TRITON_INTERPRETED

# Checks run on so many processes at a time, because compiling takes most of their time.
_WORKERS = min(8, max(1, (os.cpu_count() or 1) // 2))


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Args:
        name: name of the part.
        items: function that lists its items.
        share: share of the whole time at whose end the part ends. What a part does not need, the
            next one gets.
        cache: name of the folder of compiled kernels.
        workers: number of items that run at a time.
    """

    name: str
    items: Callable[[str, bool, float], list[Item]]
    share: float
    cache: str = "ops"
    workers: int = 1


# The most important parts come first. The first steps of models need a cache that is empty.
PARTS = (
    Part("correctness", correctness_items, 0.25, workers=_WORKERS),
    Part("shapes", lambda d, tiny, _: shape_items(d, tiny), 0.37, workers=_WORKERS),
    Part("big maps", big_items, 0.43),
    Part("ops", lambda d, tiny, _: speed_items(d, tiny), 0.65),
    Part("first step", lambda d, tiny, _: first_step_items(d, tiny), 0.82, "models"),
    Part("models", lambda d, tiny, _: network_items(d, tiny), 0.94, "models"),
    Part(
        "compiled",
        lambda d, tiny, _: flex_items(d, tiny) + compiled_items(d, tiny),
        1.0,
        "models",
    ),
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv: arguments; ``None`` for the arguments of this process.
    """
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=8, help="most minutes in all (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/gpu_check"),
        metavar="FOLDER",
        help="folder for the results (default: %(default)s)",
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=names,
        default=names,
        metavar="PART",
        help=f"parts to run: {', '.join(names)} (default: all)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="factor of the tolerances of values and gradients (default: %(default)s)",
    )
    return parser.parse_args(argv)


def describe_machine(device: str) -> Iterator[dict]:
    """Describe the machine.

    Args:
        device: device of the run.

    Yields:
        One row, as :func:`benchmarks.report.environment`, with the memory of the GPU.
    """
    row = environment(torch.device(device))
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        row["hardware"] |= dict(
            gpu_bytes=gpu.total_memory,
            multiprocessors=gpu.multi_processor_count,
            capability=[gpu.major, gpu.minor],
        )
    yield row


def main() -> int:
    """Run the parts. Return the exit code."""
    args = parse_args()
    begin = time.monotonic()
    device = "cpu" if TRITON_INTERPRETED else "cuda"
    # The items that run end with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    result: dict = dict(
        settings=dict(minutes=args.minutes, rehearsal=TRITON_INTERPRETED, parts=args.parts),
        finished=False,
        results=[],
    )

    def machine(item: Item, row: dict) -> None:
        result.update(row)

    run_items([Item("machine", partial(describe_machine, device))], 1, math.inf, machine)
    if "failed" in result:
        print(f"error: no GPU to run on: {result['failed']}", file=sys.stderr)
        print("TRITON_INTERPRET=1 in the environment rehearses on a CPU", file=sys.stderr)
        return 2

    def report(part: str, item: Item, row: dict) -> None:
        row = dict(part=part, item=item.name, at_s=round(time.monotonic() - begin, 1)) | row
        result["results"].append(row)
        write_json(result, args.out / "gpu_check.json")
        print(format_row(row), flush=True)

    with tempfile.TemporaryDirectory() as caches:
        for part in (part for part in PARTS if part.name in args.parts):
            os.environ["TRITON_CACHE_DIR"] = str(Path(caches, part.cache))
            run_items(
                part.items(device, TRITON_INTERPRETED, args.tolerance),
                1 if TRITON_INTERPRETED else part.workers,
                begin + 60 * args.minutes * part.share,
                partial(report, part.name),
            )
    result["finished"] = True
    write_json(result, args.out / "gpu_check.json")
    text = format_results(result)
    (args.out / "gpu_check.md").write_text(text + "\n")
    print(f"\n{text}", flush=True)
    return int(any(map(is_bad, result["results"])))


if __name__ == "__main__":
    sys.exit(main())
