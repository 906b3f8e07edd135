"""Images per second and memory of our backbones beside Swin and ResNet of mmpretrain."""

import argparse
import sys
from pathlib import Path

from mmlocal.cli.tool import run_tool

# In the clone alone. After the line above, as the clone must not hide an installed mmlocal.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.models import benchmark_models, format_models, list_models


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    models = list(list_models())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        choices=models,
        default=models,
        metavar="NAME",
        help=f"default: all of {', '.join(models)}",
    )
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        default=[224],
        metavar=("HEIGHT", "WIDTH"),
        help="pixels of the images, one number for a square; default: 224",
    )
    parser.add_argument("--amp", action="store_true", help="bfloat16 by autocast")
    parser.add_argument("--compile", action="store_true", help="by torch.compile too")
    parser.add_argument("--rounds", type=int, default=10, help="samples of each time")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/benchmark"), metavar="FOLDER")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: the GPU if there is one"
    )
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f"--size takes a height and a width, got {len(args.size)} numbers")
    args.size = (args.size[0], args.size[-1])
    return args


def main() -> None:
    args = parse_args()
    result = benchmark_models(
        args.out,
        args.models,
        batch_size=args.batch_size,
        size=args.size,
        amp=args.amp,
        compiled=args.compile,
        rounds=args.rounds,
        device=args.device,
    )
    print(format_models(result))


if __name__ == "__main__":
    run_tool(main)
