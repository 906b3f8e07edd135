"""The same as ``mmlocal make-shapes``."""

from mmlocal.cli import load

tool = load("make-shapes")

if __name__ == "__main__":
    tool.main()
