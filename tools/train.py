"""Train a model from a config of mmdet, mmseg or mmpretrain.

The same as ``mmlocal train``.
"""

from mmlocal.cli import load

tool = load("train")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
