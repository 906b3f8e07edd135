"""Make a checkpoint to hand out: weights and meta data only, safe to load, its hash in its name.

The same as ``mmlocal publish``.
"""

from mmlocal.cli import load

tool = load("publish")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
