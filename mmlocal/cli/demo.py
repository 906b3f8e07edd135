"""Train, test and draw a small ELSA-Swin model on generated data, in minutes on a CPU."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmlocal.cli import program
from mmlocal.cli.tool import run_tool
from mmlocal.engine.demo import DEMOS, format_summary, run_demo


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=program("demo"), description=__doc__)
    parser.add_argument(
        "task",
        nargs="?",
        choices=DEMOS,
        default="det",
        help="Mask R-CNN (det), UPerNet (seg) or a classifier (cls)",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        help="folder for the results; default: work_dirs/demo (det), work_dirs/demo-{seg,cls}",
    )
    parser.add_argument("--config", help="another config for the same task and data")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line ``argv``; default: that of this process."""
    run_tool(lambda: run(parse_args(argv)))


def run(args: argparse.Namespace) -> None:
    """Run a demo and print its summary. Raises ``UsageError``."""
    name = "demo" if args.task == "det" else f"demo-{args.task}"
    work_dir = args.work_dir or Path("work_dirs") / name
    print(format_summary(run_demo(work_dir, args.task, args.config)))
