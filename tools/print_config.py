"""Print a config with its bases and overrides merged.

The same as ``mmlocal print-config``.
"""

from mmlocal.cli import load

tool = load("print-config")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
