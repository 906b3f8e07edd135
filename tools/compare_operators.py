"""The same as ``mmlocal compare-operators``."""

from mmlocal.cli import load

tool = load("compare-operators")

if __name__ == "__main__":
    tool.main()
