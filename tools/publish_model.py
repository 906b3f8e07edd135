"""The same as ``mmlocal publish``."""

from mmlocal.cli import load

tool = load("publish")

if __name__ == "__main__":
    tool.main()
