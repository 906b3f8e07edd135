"""Hooks, optimizer wrappers and their constructors: everything MMEngine finds by registry."""
