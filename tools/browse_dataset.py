"""Show or write the images of a config's data set with their annotations.

The same as ``mmlocal browse``.
"""

from mmlocal.cli import load

tool = load("browse")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
