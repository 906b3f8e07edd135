"""Time and memory of ops and backbones. In clones only: the command lines are in ``tools/``."""
