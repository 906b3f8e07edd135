"""Print versions, what can run here, and what mends the rest."""

from mmlocal.info import main, parse_args

__all__ = ["main", "parse_args"]
