"""Arguments that several commands share."""

import argparse
from collections.abc import Callable

from mmengine.config import DictAction


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ``config`` argument, ``--cfg-options`` and ``--traceback``."""
    parser.add_argument(
        "config",
        help="config file, or the name of a config of mmlocal, such as elsa_swin_t_maskrcnn_1x",
    )
    add_override_arguments(parser)


def add_override_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` and ``--traceback``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        type=_key_value,
        action=DictAction,
        metavar="KEY=VALUE",
        help="settings that override the config; write lists as key=[a,b] or key=a,b, and nested "
        'lists and tuples as key="[(a,b),(c,d)]", without white space',
    )
    parser.add_argument(
        "--traceback",
        action=_LeftToRunTool,
        nargs=0,
        default=argparse.SUPPRESS,
        help="in addition to the message of an error, show where it was raised",
    )


class _LeftToRunTool(argparse.Action):
    """A flag that the command does not get: :func:`mmlocal.cli.tool.run_tool` looks for it."""

    def __call__(self, *args: object, **kwargs: object) -> None:
        pass


def _key_value(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return text


def number_of(what: str) -> Callable[[str], int]:
    """The type of an argument that is a whole number of at least 1.

    Args:
        what: noun for the error message, such as ``"pixels"``.
    """

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a number of {what}, got {text!r}")
        return int(text)

    return parse


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--work-dir``, ``--launcher`` and the ``--local_rank`` that old launchers pass."""
    parser.add_argument(
        "--work-dir",
        help="folder for logs, checkpoints and metrics; default: work_dir of the config, or "
        "work_dirs/<config name> if the config has none",
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="how the processes of a distributed job were started",
    )
    parser.add_argument(
        "--local_rank", "--local-rank", type=int, default=0, help="set by launchers"
    )


def add_loader_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--no-pin-memory`` and ``--no-data-check``."""
    parser.add_argument(
        "--no-pin-memory", action="store_true", help="turn pin_memory off in all dataloaders"
    )
    parser.add_argument(
        "--no-data-check",
        action="store_true",
        help="do not compare the annotations with the config before the start; use it for very "
        "large files, or if the check is wrong about your data",
    )
