"""Train auto-encoders with different layers alike, and compare their reconstructions.

The same as ``mmlocal compare-autoencoders``.
"""

from mmlocal.cli import load

tool = load("compare-autoencoders")
parse_args, main = tool.parse_args, tool.main

if __name__ == "__main__":
    main()
