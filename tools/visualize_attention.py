"""The same as ``mmlocal visualize-attention``."""

from mmlocal.cli import load

tool = load("visualize-attention")

if __name__ == "__main__":
    tool.main()
