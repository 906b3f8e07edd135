"""Is the data that a config names on this machine, and does it fit the config?

Libraries find out late, after the model is built, at the first validation or never, and each with
its own traceback. Here the config and the annotations are read before anything is built.
"""

from mmlocal.cli.data.annotations import check_annotations
from mmlocal.cli.data.paths import check_data

__all__ = ["check_annotations", "check_data"]
