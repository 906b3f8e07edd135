"""The same as ``mmlocal convert``."""

from mmlocal.cli import load

tool = load("convert")

if __name__ == "__main__":
    tool.main()
