"""The command ``mmlocal``: one subcommand for each command line, also as ``python -m mmlocal``.

A subcommand is a module of this package with ``parse_args(argv)`` and ``main(argv)``, and a line in
:data:`COMMANDS`. A script in ``tools/`` runs the same module. This module imports nothing heavy, so
that ``mmlocal --help`` is quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from mmlocal.version import __version__

#: In the order of ``mmlocal --help``. The module has the name of the subcommand, with underscores.
COMMANDS = {
    "info": "Print versions, what can run here, and how to mend the rest",
    "build": "Compile the C++ kernels for CPUs, if the installation could not",
    "demo": "Train, test and draw a small model on generated data, in minutes on a CPU",
    "configs": "List the configs that come with mmlocal, or print the path of one",
    "print-config": "Print a config with its bases and overrides merged",
    "train": "Train a model from a config",
    "test": "Test a checkpoint with a config",
    "browse": "Show or write the images of a config's data set with their annotations",
    "check-dataset": "Read a whole multi-task data set, count what is in it, and draw a sample",
    "flops": "Count parameters and GFLOPs of a model from a config",
    "convert": "Convert a checkpoint of an official code base",
    "publish": "Strip a checkpoint for publication, and put its hash in its name",
    "export-onnx": "Write the model of a config as an ONNX file, and compare the two",
    "visualize-attention": "Draw the local attention of a model on an image",
    "explore": "Show the attention of a model in a browser, pixel by pixel",
    "make-shapes": "Generate the shapes data set",
    "compare-autoencoders": "Train auto-encoders with different layers, and compare them",
    "compare-operators": "Train one network with different mixers, and compare them",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand.

    Args:
        argv: name of the subcommand and its arguments; default: the arguments of this process.

    Raises:
        SystemExit: the command line has a mistake, or the subcommand ends with an error.
    """
    lines = [f"  {name:21} {summary}" for name, summary in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog=program(),
        usage="%(prog)s [-h] [--version] COMMAND ...",
        description="Local attention for MMDetection, MMSegmentation and MMPreTrain.",
        epilog="\n".join(["commands:", *lines, "", "COMMAND --help lists its arguments."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mmlocal {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        parser.print_help()
        raise SystemExit(2)
    args = parser.parse_args(argv)
    try:
        load(args.command).main(args.arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `| head`, reads no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def load(command: str) -> ModuleType:
    """The module of a subcommand, with the functions ``parse_args(argv)`` and ``main(argv)``.

    Args:
        command: a key of :data:`COMMANDS`.

    Raises:
        SystemExit: PyTorch or another library is missing. One line says how to install it.
    """
    try:
        return importlib.import_module(f"mmlocal.cli.{command.replace('-', '_')}")
    except ImportError as error:
        if (error.name or "").startswith("mmlocal"):
            raise
        from mmlocal.compatibility import mending_of

        mend = mending_of(error)
        hint = f"Mend it with: {mend}" if mend else "`mmlocal info` says what is wrong"
        print(f"error: {program(command)} cannot run here: {error}. {hint}", file=sys.stderr)
        raise SystemExit(2) from error


def program(command: str = "") -> str:
    """The words that the user typed to start a subcommand, for its usage line.

    Args:
        command: a key of :data:`COMMANDS`; empty for the command ``mmlocal`` itself.
    """
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return f"python -m mmlocal {command}".rstrip()
    if script.suffix == ".py":
        return f"python {script}"
    return f"mmlocal {command}".rstrip()
