"""The same as ``mmlocal explore``."""

from mmlocal.cli import load

tool = load("explore")

if __name__ == "__main__":
    tool.main()
