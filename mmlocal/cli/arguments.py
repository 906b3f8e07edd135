"""Arguments that several tools share."""

import argparse

from mmengine.config import DictAction


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the ``config`` argument, ``--cfg-options`` and ``--traceback``."""
    parser.add_argument(
        "config", help="config file, or the name of a config of mmlocal (elsa_swin_t_maskrcnn_1x)"
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        type=_key_value,
        action=DictAction,
        metavar="KEY=VALUE",
        help="settings that override the config; lists as key=[a,b] or key=a,b, nested lists and "
        'tuples as key="[(a,b),(c,d)]", without white space',
    )
    parser.add_argument(
        "--traceback",
        action=_LeftToRunTool,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show where an error was raised, and not only its message",
    )


class _LeftToRunTool(argparse.Action):
    """A flag that is no argument of the command: :func:`mmlocal.cli.tool.run_tool` looks for it."""

    def __call__(self, *args: object, **kwargs: object) -> None:
        pass


def _key_value(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return text


def add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--work-dir``, ``--launcher`` and the ``--local_rank`` that old launchers pass."""
    parser.add_argument(
        "--work-dir",
        help="folder for logs, checkpoints and metrics; default: work_dir of the config, else "
        "work_dirs/<config name>",
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
        help="do not read the annotations before the start to compare them with the config; for "
        "very large files, or if the check is wrong about your data",
    )
