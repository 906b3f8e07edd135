"""The same as ``mmlocal check-dataset``."""

from mmlocal.cli import load

tool = load("check-dataset")

if __name__ == "__main__":
    tool.main()
