"""Measure time and memory of ops and backbones, with the scripts ``tools/benchmark_*.py``.

Only clones have this package; an installed mmlocal does not.
"""
