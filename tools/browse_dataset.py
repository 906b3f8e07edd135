"""The same as ``mmlocal browse``."""

from mmlocal.cli import load

tool = load("browse")

if __name__ == "__main__":
    tool.main()
