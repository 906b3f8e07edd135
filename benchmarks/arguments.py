"""Arguments that the scripts ``tools/benchmark_*.py`` share."""

import argparse
from pathlib import Path


def add_run_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add ``--rounds``, ``--out`` and ``--device``.

    Args:
        parser: parser of a script.
        rounds: default of ``--rounds``.
    """
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="samples of each time (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/benchmark"),
        metavar="FOLDER",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        help="device to run on; default: the GPU if there is one",
    )
