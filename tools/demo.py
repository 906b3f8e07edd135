"""Train, test and draw a small ELSA-Swin model on generated data, in minutes on a CPU."""

import argparse
from pathlib import Path

from mmlocal.engine import run_tool
from mmlocal.engine.demo import DEMOS, format_summary, run_demo


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
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


def main() -> None:
    args = parse_args()
    tools = Path(__file__).resolve().parent
    name = "demo" if args.task == "det" else f"demo-{args.task}"
    work_dir = args.work_dir or Path("work_dirs") / name
    print(format_summary(run_demo(tools, work_dir, args.task, args.config)))


if __name__ == "__main__":
    run_tool(main)
