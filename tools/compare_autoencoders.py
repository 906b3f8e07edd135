"""The same as ``mmlocal compare-autoencoders``."""

from mmlocal.cli import load

tool = load("compare-autoencoders")

if __name__ == "__main__":
    tool.main()
