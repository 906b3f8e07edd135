"""Test a checkpoint with a config of mmdet, mmseg or mmpretrain.

The same as ``mmlocal test``.
"""

from mmlocal.cli import load

tool = load("test")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
