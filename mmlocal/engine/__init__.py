"""Functions behind the command lines in ``tools/``: from arguments to an MMEngine runner."""

from mmlocal.engine.browse import browse
from mmlocal.engine.cli import (
    UsageError,
    add_config_arguments,
    add_launcher_arguments,
    add_loader_arguments,
    run_tool,
)
from mmlocal.engine.data import check_annotations, check_data
from mmlocal.engine.launch import (
    config_for_testing,
    config_for_training,
    load_config,
    print_config,
    run_testing,
    run_training,
)

__all__ = [
    "UsageError",
    "add_config_arguments",
    "add_launcher_arguments",
    "add_loader_arguments",
    "browse",
    "check_annotations",
    "check_data",
    "config_for_testing",
    "config_for_training",
    "load_config",
    "print_config",
    "run_testing",
    "run_tool",
    "run_training",
]
