"""Arguments that several tools share, and how a tool reports a user's mistake."""

import argparse
import atexit
import os
import sys
import time
import traceback
from collections.abc import Callable

import torch
from mmengine.config import DictAction


class UsageError(Exception):
    """A mistake in the command line, the config or the data layout, in words for the user."""


# A launcher ends all processes when one has ended, so the one that speaks has to be first.
_SECONDS_FOR_FIRST = 10


def run_tool(main: Callable[[], None]) -> None:
    """Call ``main``; a :class:`UsageError` ends the process with its message and exit code 2.

    Under a distributed launcher every process ends, but only the first of each machine prints:
    the others see the same files. With ``--traceback`` on the command line the traceback of the
    error comes first.
    """
    try:
        main()
    except UsageError as error:
        if is_first_of_machine():
            if "--traceback" in sys.argv[1:]:
                traceback.print_exception(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(_SECONDS_FOR_FIRST)
        _end_process(2)
    _end_process(0)


def _end_process(status: int) -> None:
    """Exit; a process of a distributed job does so without tearing Python down.

    MMEngine leaves the threads of the process group running. One of them that asks for the
    interpreter while it is torn down aborts the process, now and then, and the launcher then takes
    the whole job for failed. Leaving the group is not enough, as the model holds on to it. What
    was registered for the exit still runs.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        sys.exit(status)


def warn(message: str) -> None:
    """Print a warning, on the first process of each machine."""
    if is_first_of_machine():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def is_first_of_machine() -> bool:
    """Whether torchrun, Slurm or Open MPI, if any, gave this process the local rank 0."""
    variables = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
    return all(int(os.environ.get(variable, 0)) == 0 for variable in variables)


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
        action="store_true",
        help="show where an error was raised, and not only its message",
    )


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
