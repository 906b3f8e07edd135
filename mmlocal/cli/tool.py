"""How a tool reports a user's mistake."""

import atexit
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable

import torch

from mmlocal.errors import UsageError

# A launcher ends all processes when one has ended, so the one that speaks has to be first.
_SECONDS_FOR_FIRST = 10
# Exit code of a process of a distributed job, once its work is done.
_status_of_job: int | None = None


def run_tool(main: Callable[[], None]) -> None:
    """Call ``main``; a :class:`UsageError` ends the process with its message and exit code 2.

    The message begins with the flag of the argument at fault. Under a distributed launcher every
    process ends, but only the first of each machine prints, as the others see the same files. With
    ``--traceback`` on the command line the traceback of the error comes first.

    Args:
        main: what to call; also parses the command line.
    """
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

    MMEngine leaves the threads of the process group running. One of them that asks for the
    interpreter while it is torn down aborts the process, now and then, and the launcher then takes
    the whole job for failed. Leaving the group is not enough, as the model holds on to it.
    """
    global _status_of_job
    if torch.distributed.is_available() and torch.distributed.is_initialized():
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
    """Print a warning, on the first process of each machine."""
    if is_first_of_machine():
        print(f"warning: {message}", file=sys.stderr, flush=True)


def is_first_of_machine() -> bool:
    """Whether torchrun, Slurm or Open MPI, if any, gave this process the local rank 0."""
    variables = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK")
    return all(int(os.environ.get(variable, 0)) == 0 for variable in variables)
