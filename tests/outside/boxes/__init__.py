"""A package outside mmlocal, with an op, a mixer, a backbone and a library."""

from boxes import backbone, library

__all__ = ["backbone", "library"]
