"""Train auto-encoders with different layers alike, and compare their reconstructions.

The same as ``mmlocal compare-autoencoders``.
"""

from mmlocal.cli import load

tool = load("compare-autoencoders")
parse_args = tool.parse_args

if __name__ == "__main__":
    tool.main()
