"""Report a user's mistake in one line, and end the process.

This module does not import torch, so commands that do not need torch start quickly.
"""

import atexit
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable

from mmlocal.errors import UsageError

# A launcher ends all processes when one has ended, so the one that prints has to end first.
_SECONDS_FOR_FIRST = 10
# Exit code of a process of a distributed job, once its work is done.
_status_of_job: int | None = None


def run_tool(main: Callable[[], None]) -> None:
    """Call ``main``; a :class:`UsageError` ends the process with its message and exit code 2.

    The message begins with the flag of the argument at fault. Under a distributed launcher every
    process ends. Only the first process of each machine prints, because the others see the same
    files. With ``--traceback`` on the command line, the traceback of the error comes first.

    From here on, this process also finds modules in the working directory, for ``custom_imports``.
    Modules that are installed come first.

    Args:
        main: function that parses the command line and does the work.

    Raises:
        SystemExit: ``main`` raised a :class:`UsageError`.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        main()
    except UsageError as error:
        if is_first_of_machine():
            if "--traceback" in sys.argv[1:]:
                traceback.print_exception(error)
            flag = f"--{error.argument.replace('_', '-')}: " if error.argument else ""
            print(f"error: {flag}{error.message}", file=sys.stderr, flush=True)
        else:
            time.sleep(_SECONDS_FOR_FIRST)
        _end_process(2)
    _end_process(0)


def _end_process(status: int) -> None:
    """Exit; a process of a distributed job does so without tearing Python down.

    MMEngine leaves the threads of the process group running. If one of them asks for the
    interpreter while Python is torn down, it sometimes aborts the process. The launcher then
    reports the whole job as failed. Leaving the group is not enough, because the model holds on
    to it.
    """
    global _status_of_job
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        _status_of_job = status
    if status:
        sys.exit(status)


@atexit.register
def _leave_job() -> None:
    """End at once, after the handlers that were registered since this module was imported."""
    if _status_of_job is not None:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_status_of_job)


def warn(message: str) -> None:
    """Print a warning, on the first process of each machine.

    Args:
        message: text of the warning.
    """
    if is_first_of_machine():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def is_first_of_machine() -> bool:
    """Whether this process has the local rank 0, or no launcher gave it a local rank.

    Torchrun, Slurm and Open MPI give local ranks.
    """
    variables = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
    return all(int(os.environ.get(variable, 0)) == 0 for variable in variables)
