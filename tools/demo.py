"""The same as ``mmlocal demo``."""

from mmlocal.cli import load

tool = load("demo")

if __name__ == "__main__":
    tool.main()
