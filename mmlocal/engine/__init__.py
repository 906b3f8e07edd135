"""Hooks, optimizer wrappers and their constructors, which MMEngine finds in its registries."""
