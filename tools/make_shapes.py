"""Generate the shapes data set: COCO instances, label maps and class folders, from a seed.

The same as ``mmlocal make-shapes``.
"""

from mmlocal.cli import load

tool = load("make-shapes")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
