"""Train, test and draw a small ELSA-Swin Mask R-CNN on generated data, in minutes on a CPU."""

import argparse
from pathlib import Path

from mmlocal.engine import run_tool
from mmlocal.engine.demo import CONFIG, format_summary, run_demo


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work-dir", type=Path, default=Path("work_dirs/demo"), help="folder for the results"
    )
    parser.add_argument("--config", default=CONFIG, help="a config for the data in data/shapes")
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    tools = Path(__file__).resolve().parent
    print(format_summary(run_demo(tools, args.work_dir, args.config)))


if __name__ == "__main__":
    run_tool(main)
