"""Count parameters and GFLOPs of a model from a config of mmdet, mmseg or mmpretrain.

The same as ``mmlocal flops``.
"""

from mmlocal.cli import load

tool = load("flops")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
