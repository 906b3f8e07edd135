"""The same as ``mmlocal train``."""

from mmlocal.cli import load

tool = load("train")

if __name__ == "__main__":
    tool.main()
