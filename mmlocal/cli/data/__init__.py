"""Check that the data of a config is on this machine, and that it fits the config.

Libraries notice such mistakes late: after the model is built, at the first validation, or never.
Each library shows them with its own traceback. Here the config and the annotations are read before
anything is built.
"""

from mmlocal.cli.data.annotations import check_annotations
from mmlocal.cli.data.paths import check_data

__all__ = ["check_annotations", "check_data"]
