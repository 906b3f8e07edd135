"""Convert a checkpoint of an official code base for use with mmdet, mmseg and mmpretrain.

The same as ``mmlocal convert``.
"""

from mmlocal.cli import load

tool = load("convert")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
