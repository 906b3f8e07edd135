"""Data sets. Importing this package imports nothing else, so that the registry can never fail."""
