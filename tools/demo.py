"""Train, test and draw a small ELSA-Swin model on generated data, in minutes on a CPU.

The same as ``mmlocal demo``.
"""

from mmlocal.cli import load

tool = load("demo")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
