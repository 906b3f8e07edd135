"""The same as ``mmlocal print-config``."""

from mmlocal.cli import load

tool = load("print-config")

if __name__ == "__main__":
    tool.main()
