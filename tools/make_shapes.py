"""Generate the shapes data set: COCO instances, label maps and class folders, from a seed.

The same as ``mmlocal make-shapes``.
"""

from mmlocal.cli import load

tool = load("make-shapes")
parse_args = tool.parse_args

if __name__ == "__main__":
    tool.main()
