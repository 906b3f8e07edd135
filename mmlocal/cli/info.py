"""Print versions, what can run here, and how to mend the rest."""

from mmlocal.info import main, parse_args

__all__ = ["main", "parse_args"]
