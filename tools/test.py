"""The same as ``mmlocal test``."""

from mmlocal.cli import load

tool = load("test")

if __name__ == "__main__":
    tool.main()
