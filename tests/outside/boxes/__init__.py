"""A package beside mmlocal: an op, a mixer, a backbone and a library, one file or folder each."""

from boxes import backbone, library

__all__ = ["backbone", "library"]
