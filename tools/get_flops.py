"""The same as ``mmlocal flops``."""

from mmlocal.cli import load

tool = load("flops")

if __name__ == "__main__":
    tool.main()
