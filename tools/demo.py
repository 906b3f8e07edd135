"""Train, test and draw a small ELSA-Swin model on generated data, in minutes on a CPU.

The same as ``mmlocal demo``.
"""

from mmlocal.cli import load

tool = load("demo")
parse_args = tool.parse_args

if __name__ == "__main__":
    tool.main()
