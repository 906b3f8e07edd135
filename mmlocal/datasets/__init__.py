"""Data sets. This package imports nothing, so that its registry can never fail."""
